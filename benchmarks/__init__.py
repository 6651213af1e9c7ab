"""Benchmarks: each module here is one script."""
