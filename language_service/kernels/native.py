"""Kernels in C++ for processors with AVX-512 and bfloat16.

The order of the sums of a row does not depend on the other rows of the batch. So a result is the same, bit by bit, in
every batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.kernels.interface import Layer, Layers, Projection
from language_service.kernels.layers import LayerByLayer
from language_service.kernels.library import address, library, require
from language_service.kernels.native_layers import NativeLayers
from language_service.kernels.native_projection import NativeHead, NativeProjection
from language_service.kernels.plain import OneDnnProjection


class NativeKernels:
    """Implements `Kernels` for bfloat16 on the CPU.

    Tensors must be contiguous, except the heads given to `rotate_heads`.
    """

    angle_dtype = torch.float32

    def __init__(self) -> None:
        self._library = require()

    def project(self, weight_NK: Tensor, bias_N: Tensor | None) -> Projection:
        """Return a projection with a copy of these weights."""
        return NativeProjection(self._library, weight_NK, bias_N)

    def head(self, weight_VD: Tensor) -> NativeHead:
        """Return a head with a copy of these weights."""
        return NativeHead(self._library, weight_VD)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Normalise `x_TD` in float32 and round once."""
        out_TD = torch.empty_like(x_TD)
        self._library.tandem_rms_norm(
            x_TD.data_ptr(), weight_D.data_ptr(), out_TD.data_ptr(), *x_TD.shape, eps, torch.get_num_threads()
        )
        return out_TD

    def rotate_heads(
        self, x_THE: Tensor, weight_E: Tensor | None, eps: float, cos_T1F: Tensor, sin_T1F: Tensor
    ) -> Tensor:
        """Normalise and rotate in place, in float32, rounded once."""
        num_rows, heads, size = x_THE.shape
        self._library.tandem_rotate_heads(
            x_THE.data_ptr(),
            address(weight_E),
            cos_T1F.data_ptr(),
            sin_T1F.data_ptr(),
            num_rows,
            x_THE.stride(0),
            heads,
            size,
            eps,
            torch.get_num_threads(),
        )
        return x_THE

    def swiglu(self, x_TM: Tensor) -> Tensor:
        """Return silu(gate) * up, [T, M / 2]."""
        num_rows, width = x_TM.shape[0], x_TM.shape[1] // 2
        out = x_TM.new_empty(num_rows, width)
        self._library.tandem_swiglu(x_TM.data_ptr(), out.data_ptr(), num_rows, width, torch.get_num_threads())
        return out

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        """Return the layers, computed in one call if possible."""
        return NativeLayers(self, config, layers)


class TileKernels(NativeKernels):
    """Native kernels for processors with AMX.

    Projections use oneDNN, because tiles are much faster than vectors.
    """

    def project(self, weight_NK: Tensor, bias_N: Tensor | None) -> Projection:
        """Return a projection with a copy of these weights."""
        return OneDnnProjection(weight_NK, bias_N)

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        """Return the layers, computed one after the other."""
        return LayerByLayer(self, config, layers)


def largest(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logits [B] and their tokens [B].

    Of equal logits, the first one counts.

    The value is NaN if any logit of the row is NaN. Where the native kernel cannot run, torch computes the same, about
    ten times slower.
    """
    native = library() if logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32 else None
    if native is None or not logits_BV.is_contiguous():
        return logits_BV.max(dim=-1)
    num_rows, vocab_size = logits_BV.shape
    values_B, tokens_B = torch.empty(num_rows), torch.empty(num_rows, dtype=torch.int64)
    native.tandem_largest(
        logits_BV.data_ptr(),
        values_B.data_ptr(),
        tokens_B.data_ptr(),
        num_rows,
        vocab_size,
        torch.get_num_threads(),
    )
    return values_B, tokens_B
