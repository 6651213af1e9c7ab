"""Integers of a recorded step, in memory that never moves."""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class FixedInputs:
    """Integers on the host, and their copies on a device.

    All are int64. They lie end to end, so that one copy moves them all.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        """Allocate arrays of zeros.

        Args:
            shapes: by name.
            device: of the copies.
        """
        total = sum(map(prod, shapes.values()))
        self._host = np.zeros(total, np.int64)
        self._device = torch.zeros(total, dtype=torch.long, device=device)
        self._arrays: dict[str, NDArray[np.int64]] = {}
        self._tensors: dict[str, Tensor] = {}
        end = 0
        for name, shape in shapes.items():
            start, end = end, end + prod(shape)
            self._arrays[name] = self._host[start:end].reshape(shape)
            self._tensors[name] = self._device[start:end].view(shape)

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        """Return an array on the host, to be filled."""
        return self._arrays[name]

    def tensor(self, name: str) -> Tensor:
        """Return its copy on the device."""
        return self._tensors[name]

    def send(self) -> None:
        """Copy all arrays to the device."""
        self._device.copy_(torch.from_numpy(self._host))
