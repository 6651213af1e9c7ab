"""Measure how much memory weights and a KV cache may take."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class _Version:
    """The files of one version of control groups."""

    folder: Path  # below `_CGROUPS`
    controllers: str  # of the process's group in `_OWN_GROUPS`
    limit: str
    used: str
    cached: str  # name in memory.stat of the file pages that Linux drops when needed


_VERSIONS = (
    _Version(Path(), "", "memory.max", "memory.current", "inactive_file"),
    _Version(Path("memory"), "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
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
    """Return the memory that all control groups leave.

    Groups are nested, and each bounds the use of all groups below it.
    """
    return min((_left_bytes(folder, version) for version in _VERSIONS for folder in _groups(version)), default=2**63)


def _groups(version: _Version) -> Iterator[Path]:
    """Yield the folders of the process's groups, outer ones first.

    A container may see its own group as the root, while the process's path starts at the machine's. Folders that are
    not there have no files to read.
    """
    root = _CGROUPS / version.folder
    yield root
    for line in _read(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if version.controllers in controllers.split(","):
            names = [name for name in path.split("/") if name not in ("", "..")]
            yield from (root.joinpath(*names[:depth]) for depth in range(1, len(names) + 1))


def _left_bytes(folder: Path, version: _Version) -> int:
    """Return the memory that the limit of one group leaves."""
    limit, used = _read(folder / version.limit).strip(), _read(folder / version.used).strip()
    if not (limit.isdigit() and used.isdigit()):
        return 2**63
    # Cached file pages, also those of the weights just read, count as used.
    statistics = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    return max(0, int(limit) - int(used) + int(statistics.get(version.cached, 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
