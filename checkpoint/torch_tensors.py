"""Convert stored tensors to torch, and read `.bin` files."""

import ctypes
import mmap
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoint.stored_tensor import StoredTensor


@dataclass(frozen=True, slots=True)
class TorchTensor:
    """A torch tensor as a `StoredTensor`."""

    tensor: Tensor

    @property
    def dtype(self) -> str:
        """Element type, such as 'bfloat16'."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension, outermost first."""
        return tuple(self.tensor.shape)

    def elements(self) -> memoryview:
        """Return the elements as bytes.

        A contiguous tensor on the CPU is not copied.
        """
        contiguous = self.tensor.detach().cpu().contiguous()
        return contiguous.reshape(-1).view(torch.uint8).numpy().data

    def drop_pages(self) -> None:
        """Free the memory that reading a mapped tensor took."""
        view = self.tensor
        if not hasattr(mmap, "MADV_DONTNEED"):  # not Linux
            return
        if not view.is_contiguous():  # an expanded tensor repeats a few bytes and claims memory that is not its own
            return
        first = -(-view.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: neighbours share the others
        length = (view.data_ptr() + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def as_torch(stored: StoredTensor) -> Tensor:
    """Return a torch tensor that shares a stored tensor's memory."""
    if isinstance(stored, TorchTensor):
        return stored.tensor
    dtype: torch.dtype = getattr(torch, stored.dtype)
    elements = stored.elements()
    flat = torch.frombuffer(elements, dtype=dtype) if elements else torch.empty(0, dtype=dtype)
    return flat.reshape(stored.shape)


def read_bin(path: Path) -> dict[str, TorchTensor]:
    """Map a torch `.bin` file and return its tensors.

    Raises:
        Exception: any, if the file is damaged or holds anything but plain tensors by name.
    """
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor) for name, tensor in loaded.items()
    ):
        raise ValueError("not a mapping of names to plain tensors")
    return {name: TorchTensor(tensor.detach()) for name, tensor in loaded.items()}  # a parameter has gradients


def _is_plain(tensor: Tensor) -> bool:
    """Return whether memory holds the elements themselves.

    It does not for a tensor that is sparse, nested, negated or on another device.
    """
    in_memory = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return in_memory and not tensor.is_nested and not tensor.is_neg()
