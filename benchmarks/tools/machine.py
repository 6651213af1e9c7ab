"""What this machine can do at most, measured in the run that quotes it."""

import statistics
import time
from collections.abc import Callable

import torch


def read_bandwidth(num_bytes: int = 1 << 30, repetitions: int = 5) -> float:
    """Return bytes a second that all threads together read from memory (median)."""
    values = torch.ones(num_bytes // 4, dtype=torch.float32)
    return num_bytes / _median_s(lambda: values.sum(), repetitions)


def matmul_peak(dtype: torch.dtype, side: int = 2048, repetitions: int = 5) -> float:
    """Return floating-point operations a second of a square matrix product (median)."""
    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side**3 / _median_s(lambda: left @ right, repetitions)


def _median_s(work: Callable[[], object], repetitions: int) -> float:
    work()  # the first call pages memory in and picks a kernel
    samples = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)
