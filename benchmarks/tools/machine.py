"""Limits of this machine, for comparison with a run's figures."""

import statistics
import time
from collections.abc import Callable

import torch


def read_bandwidth(num_bytes: int = 1 << 30, repetitions: int = 5) -> float:
    """Return the memory read bandwidth of all threads together, bytes/s.

    It is the median of several repetitions.
    """
    values = torch.ones(num_bytes // 4, dtype=torch.float32)
    return num_bytes / _median_s(lambda: values.sum(), repetitions)


def matmul_peak(dtype: torch.dtype, side: int = 2048, repetitions: int = 5) -> float:
    """Return the speed of a square matrix product, FLOP/s.

    It is the median of several repetitions.
    """
    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side**3 / _median_s(lambda: left @ right, repetitions)


def _median_s(work: Callable[[], object], repetitions: int) -> float:
    work()  # the first call maps memory and chooses a kernel
    samples = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)
