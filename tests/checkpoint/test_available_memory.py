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


def test_cached_file_pages_count_as_available_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, reading the weights would make the cache smaller."""
    for name, content in (
        ("memory.max", "1000000\n"),
        ("memory.current", "800000\n"),
        ("memory.stat", "anon 300000\nactive_file 100000\ninactive_file 400000\n"),
    ):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(available_memory, "_CGROUP", tmp_path)
    assert available_bytes(torch.device("cpu")) == 600000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 600000


def test_the_limit_of_a_first_version_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory").mkdir()
    for name, content in (
        ("memory.limit_in_bytes", "1000000\n"),
        ("memory.usage_in_bytes", "800000\n"),
        ("memory.stat", "inactive_file 1\ntotal_inactive_file 100000\n"),
    ):
        (tmp_path / "memory" / name).write_text(content)
    monkeypatch.setattr(available_memory, "_CGROUP", tmp_path)
    assert available_bytes(torch.device("cpu")) == 300000
