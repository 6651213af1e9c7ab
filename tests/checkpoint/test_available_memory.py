"""The memory that weights and a KV cache may take."""

import os
from pathlib import Path

import pytest
import torch

from checkpoint import available_memory
from checkpoint.available_memory import available_bytes


def test_available_memory_is_at_most_that_of_the_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < available_bytes(torch.device("cpu")) <= total


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder of control groups.

    The process is in the root.
    """
    monkeypatch.setattr(available_memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(available_memory, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path


def write_group(folder: Path, limit: str, used: int, cached: int, *, version: int = 2) -> None:
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    # Version 1 has the pages of the group alone, too.
    statistics = f"inactive_file {cached}" if version == 2 else f"inactive_file 1\ntotal_inactive_file {cached}"
    (folder / "memory.stat").write_text(f"anon 300000\nactive_file 100000\n{statistics}\n")


def left() -> int:
    return available_bytes(torch.device("cpu"))


def test_cached_file_pages_count_as_available_in_a_container(groups: Path) -> None:
    """Otherwise, reading the weights would make the cache smaller."""
    write_group(groups, "1000000", 800000, 400000)
    assert left() == 600000
    write_group(groups, "max", 800000, 400000)
    assert left() > 600000


def test_the_limit_of_a_first_version_control_group_counts(groups: Path) -> None:
    write_group(groups / "memory", "1000000", 800000, 100000, version=1)
    assert left() == 300000


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_every_ancestor_counts(groups: Path, version: int) -> None:
    """A pod's limit bounds its containers."""
    root = groups if version == 2 else groups / "memory"
    unlimited = "max" if version == 2 else str(2**63 - 4096)
    (groups / "own").write_text("5:cpu,memory:/pods/pod/container\n" if version == 1 else "0::/pods/pod/container\n")
    write_group(root / "pods/pod/container", unlimited, 100000, 0, version=version)
    assert left() > 2**20
    write_group(root / "pods/pod", "900000", 200000, 0, version=version)
    assert left() == 700000
    write_group(root / "pods", "800000", 300000, 100000, version=version)
    assert left() == 600000
    write_group(root / "pods/pod/container", "150000", 100000, 0, version=version)
    assert left() == 50000


def test_a_group_outside_of_the_container_is_no_error(groups: Path) -> None:
    """A container may see the machine's path."""
    (groups / "own").write_text("1:name=systemd:/docker/one\n0::/docker/one\n")
    write_group(groups, "1000000", 800000, 0)
    assert left() == 200000
    (groups / "own").write_text("0::/../other\n")
    assert left() == 200000
