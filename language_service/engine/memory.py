"""Measure how much memory a KV cache may take."""

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


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
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if not (limit.isdigit() and used.isdigit()):
        return 2**63
    # Cached file pages, also those of the weights just read, count as used. Linux drops them when memory is needed.
    statistics = dict(line.split() for line in _read(_CGROUP / "memory.stat").splitlines())
    return max(0, int(limit) - int(used) + int(statistics.get("inactive_file", 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
