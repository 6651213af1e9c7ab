"""Times on a device, and the device's limits."""

import itertools
import statistics
import time
from collections.abc import Callable

import torch

_WARM_UPS = 3


def median_s(work: Callable[[], object], device: torch.device, repetitions: int = 10) -> float:
    """Return the median time of one call, seconds.

    On a GPU, CUDA events measure from the end of the work before to the end of this.
    """
    for _ in range(_WARM_UPS):
        work()
    if device.type != "cuda":
        samples = []
        for _ in range(repetitions):
            start_s = time.perf_counter()
            work()
            samples.append(time.perf_counter() - start_s)
        return statistics.median(samples)
    torch.cuda.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]  # type: ignore[no-untyped-call]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize(device)
    times_ms: list[float] = [first.elapsed_time(second) for first, second in itertools.pairwise(events)]
    return statistics.median(times_ms) / 1000


def recorded(work: Callable[[], object], device: torch.device, calls: int) -> Callable[[], object]:
    """Return the replay of some calls as one CUDA graph.

    On a CPU it runs them one by one.
    """

    def run() -> None:
        for _ in range(calls):
            work()

    if device.type != "cuda":
        return run
    work()  # compiles kernels and allocates their memory, which cannot be recorded
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def memory_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Return the memory bandwidth, bytes/s.

    It is the better of a sum, which reads, and of a copy, which reads and writes.
    """
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    read = num_bytes / median_s(lambda: source.sum(), device)
    copied = 2 * num_bytes / median_s(lambda: target.copy_(source), device)
    return max(read, copied)


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the speed of a square matrix product, FLOP/s.

    The matrices are random, because zeros are multiplied faster.
    """
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    return 2 * side**3 / median_s(lambda: torch.mm(left, right, out=out), device)
