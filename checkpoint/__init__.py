"""Read, write and check models on disk.

Loading, making and packing weights need torch. Everything else does not.
"""
