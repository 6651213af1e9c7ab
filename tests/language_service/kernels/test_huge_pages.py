"""Tensors in huge pages."""

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from language_service.kernels import huge_pages


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1,), (7, 1 << 20)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tensor_has_its_shape_and_type_and_can_be_written(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = huge_pages.empty(shape, dtype)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
    expected = torch.arange(tensor.numel()).remainder(251).view(shape).to(dtype)
    tensor.copy_(expected)
    assert torch.equal(tensor, expected)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_memory_is_advised_to_use_huge_pages() -> None:
    tensor = huge_pages.empty((8 << 20,), torch.bfloat16).zero_()
    assert "hg" in flags_at(tensor.data_ptr())
    assert "hg" not in flags_at(torch.zeros(8 << 20).data_ptr())


def flags_at(address: int) -> list[str]:
    """Return the flags of the mapping that contains an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no mapping contains the address")
