"""Read, write and check models on disk. Only weights in memory need torch."""
