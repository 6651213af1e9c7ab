"""Shared by the benchmarks: reports, simulated users, stand-in services, machine limits."""
