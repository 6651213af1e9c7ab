"""Measure how much memory weights and a KV cache may take."""

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
# Files of limit, use and statistics, and the name of cached pages in the latter: version 2 of cgroups, then version 1.
_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_bytes(device: torch.device) -> int:
    """Return the bytes this process can still allocate on `device`."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_machine_bytes(), _container_bytes())


def _machine_bytes() -> int:
    """Return the memory that is available without swapping.

    If Linux does not report it, that is the free memory.
    """
    for line in _read(Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes() -> int:
    """Return the memory that the container's limit leaves."""
    for limit_file, used_file, statistics_file, pages in _FILES:
        limit, used = _read(_CGROUP / limit_file).strip(), _read(_CGROUP / used_file).strip()
        if limit.isdigit() and used.isdigit():
            # Cached file pages, also those of the weights just read, count as used. Linux drops them when needed.
            statistics = dict(line.split() for line in _read(_CGROUP / statistics_file).splitlines())
            return max(0, int(limit) - int(used) + int(statistics.get(pages, 0)))
    return 2**63


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
