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


def matmul_peak(side: int = 2048, repetitions: int = 5) -> float:
    """Return the speed of square matrix products, FLOP/s.

    Values are bfloat16, and products the faster of bfloat16 and float32, because some processors only have the latter.
    It is the median of several repetitions.
    """

    def seconds(dtype: torch.dtype, side: int) -> float:
        left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        return _median_s(lambda: left @ right, repetitions)

    # Small products choose: torch's products of bfloat16 take minutes on such processors.
    fastest = min((torch.bfloat16, torch.float32), key=lambda dtype: seconds(dtype, side // 8))
    return 2 * side**3 / seconds(fastest, side)


def _median_s(work: Callable[[], object], repetitions: int) -> float:
    work()  # the first call maps memory and chooses a kernel
    samples = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)
