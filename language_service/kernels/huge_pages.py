"""Allocate weights and KV cache in huge pages."""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_CPU = torch.device("cpu")


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
    """Return an uninitialised tensor, on the CPU in huge pages.

    With pages of 4 KiB, looking up page addresses takes about as long as reading the memory. Where the system has no
    huge pages, the tensor lies in ordinary ones.
    """
    count = math.prod(shape)
    if device.type != "cpu" or count == 0:
        return torch.empty(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not Linux, or a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
