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


def private_bytes() -> int:
    """Return the memory that no other process shares."""
    with open("/proc/self/smaps_rollup", "rb") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(b"Private"))


def _statm(column: int) -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[column]) * resource.getpagesize()
