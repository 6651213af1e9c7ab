"""Memory for what is read in full every step: weights and cache."""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_CPU = torch.device("cpu")


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
    """Return a tensor to be written, on the processor in pages of 2 MiB where the system has them to give.

    In pages of 4 KiB the processor looks up where each one lies about as often as it waits for the memory itself.
    """
    count = math.prod(shape)
    if device.type != "cpu" or count == 0:
        return torch.empty(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # another system, or one built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
