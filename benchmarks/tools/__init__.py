"""Tools of the benchmarks: reports, simulated users, stand-in services."""
