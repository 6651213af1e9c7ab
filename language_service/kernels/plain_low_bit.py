"""Projections with 8 or 4 bits a weight, in torch.

The slow, obvious form of the fast kernels, for any device. The weights stay packed. Each call converts a part of them
at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from checkpoint.lowbit import LowBitWeight

# Letters as in `interface`

_ROWS = 4096  # outputs whose weights are converted at a time
_LARGEST = 127  # of an activation with 8 bits


class LowBitProjection:
    """A projection that converts its weights when it is called."""

    def __init__(self, weight: LowBitWeight, bias_N: Tensor | None) -> None:
        self._weight, self._bias_N = weight, bias_N

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N] plus `residual_TN`, rounded once."""
        out_TN = multiply(x_TK, self._weight)
        for added in (self._bias_N, residual_TN):
            if added is not None:
                out_TN += added
        return out_TN.type_as(x_TK)


class LowBitHead:
    """A head with 8 bits a weight.

    Its rows are no embeddings: those keep a float type.
    """

    def __init__(self, weight: LowBitWeight) -> None:
        self._weight = weight

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return logits [T, V] in float32."""
        return multiply(x_TD, self._weight)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the rows [..., D] of `token_ids`, in float32."""
        flat = token_ids.flatten()
        rows = LowBitWeight(
            self._weight.scheme, self._weight.values[flat], self._weight.scales[flat], None, self._weight.group
        )
        return rows.dequantize().view(*token_ids.shape, -1)


def multiply(x_TK: Tensor, weight: LowBitWeight) -> Tensor:
    """Return the products [T, N] in float32.

    With 8-bit activations, each row of `x_TK` is rounded to integers of its own scale first.
    """
    if weight.scheme == "w4a16":
        return torch.cat([functional.linear(x_TK, part.to(x_TK.dtype)).float() for part in _parts(weight)], dim=-1)
    integers_TK, scales_T1 = round_rows(x_TK)
    return torch.cat([functional.linear(integers_TK, part) for part in _parts(weight)], dim=-1) * scales_T1


def round_rows(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers in float32 [T, K], and scales [T, 1]."""
    x_TK = x_TK.float()
    scales_T1 = x_TK.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
    return (x_TK / scales_T1).round().clamp(-_LARGEST, _LARGEST), scales_T1


def _parts(weight: LowBitWeight) -> Iterator[Tensor]:
    """Yield the weights of some outputs after the other, [some, K]."""
    for start in range(0, weight.shape[0], _ROWS):
        yield weight.rows(start, start + _ROWS).dequantize()
