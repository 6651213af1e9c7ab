"""Limit and read the memory of this process."""

import resource
from contextlib import suppress


def limit_memory(num_bytes: int) -> None:
    """Let allocations fail beyond so many bytes more.

    Also writes no core file. Only Linux counts all allocations.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_statm(5) + num_bytes, most))  # data and stack


def resident_bytes() -> int:
    """Return the memory in use, with pages that others share."""
    return _statm(1)


def touched_bytes() -> int:
    """Return the size of pages new to this process.

    In a copy of another process they include the pages that it has copied so far. Pages that were given back still
    count, so this suits the start of a process. Counting its private pages instead would walk through all of them.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize()


def _statm(column: int) -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[column]) * resource.getpagesize()
