"""Where weights and cache lie."""

import mmap
import re
import sys
from pathlib import Path

import pytest
import torch

from language_service.kernels import huge_pages


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1,), (7, 1 << 20)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tensor_has_the_shape_and_type_asked_for_and_keeps_what_is_written(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    tensor = huge_pages.empty(shape, dtype)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
    wanted = torch.arange(tensor.numel()).remainder(251).view(shape).to(dtype)
    tensor.copy_(wanted)
    assert torch.equal(tensor, wanted)


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages")
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of a process's memory")
def test_the_system_is_asked_for_large_pages() -> None:
    tensor = huge_pages.empty((8 << 20,), torch.bfloat16).zero_()
    assert "hg" in flags_at(tensor.data_ptr())
    assert "hg" not in flags_at(torch.zeros(8 << 20).data_ptr())


def flags_at(address: int) -> list[str]:
    """Return the kernel's flags of the mapping an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("the address lies in no mapping")
