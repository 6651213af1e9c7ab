"""Engines of the decoding benchmark, one process each."""
