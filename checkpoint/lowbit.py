"""Matrices with 8 or 4 bits a weight.

A row is [K] inputs of one output. Each group of inputs of a row shares a scale, and a zero if it has one:
weight = (value - zero) * scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoint.families import Scheme

# N outputs, K inputs, G groups of a row

NIBBLE_ZERO = 8  # what the stored nibble of the value 0 is


@dataclass(frozen=True, slots=True)
class LowBitWeight:
    """The matrix of a linear map, in few bits, [N, K]."""

    scheme: Scheme
    values: Tensor  # int8 [N, K], or for 4 bits uint8 [N, K/2]: input 2j in the low nibble of byte j, each value + 8
    scales: Tensor  # float32 or bfloat16 [N, G]
    zeros: Tensor | None  # int8 [N, G]. None: all are 0.
    group: int  # inputs that share a scale, K / G

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.scales.shape[0], self.scales.shape[1] * self.group

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def numel(self) -> int:
        """Return the number of weights."""
        return self.shape[0] * self.shape[1]

    def rows(self, start: int, stop: int) -> "LowBitWeight":
        """Return some of the outputs, sharing memory."""
        zeros = None if self.zeros is None else self.zeros[start:stop]
        return LowBitWeight(self.scheme, self.values[start:stop], self.scales[start:stop], zeros, self.group)

    def integers(self) -> Tensor:
        """Return the values as int8 [N, K], with zeros subtracted."""
        values_NK = self.values if self.values.dtype == torch.int8 else unpack_nibbles(self.values)
        if self.zeros is None:
            return values_NK
        return (values_NK.view(len(values_NK), -1, self.group) - self.zeros[:, :, None]).flatten(1)

    def dequantize(self) -> Tensor:
        """Return the weights in float32, [N, K]."""
        grouped = self.integers().view(self.shape[0], -1, self.group).float()
        return (grouped * self.scales.float()[:, :, None]).flatten(1)


def join(parts: Sequence[LowBitWeight]) -> LowBitWeight:
    """Return several maps of the same input as one.

    All must have the same scheme and group.
    """
    first = parts[0]
    if any((part.scheme, part.group) != (first.scheme, first.group) for part in parts):
        raise ValueError("matrices of different schemes cannot be joined")
    zeros = [torch.zeros_like(part.scales, dtype=torch.int8) if part.zeros is None else part.zeros for part in parts]
    return LowBitWeight(
        first.scheme,
        torch.cat([part.values for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(zeros) if any(part.zeros is not None for part in parts) else None,
        first.group,
    )


def pack_nibbles(values_NK: Tensor) -> Tensor:
    """Return int8 values of -8..7 as uint8 [N, K/2]."""
    nibbles = (values_NK + NIBBLE_ZERO).to(torch.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Return the int8 values [N, K] of uint8 [N, K/2]."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1).to(torch.int8) - NIBBLE_ZERO
