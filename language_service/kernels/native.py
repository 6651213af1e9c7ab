"""Kernels in C++, for several instruction sets.

The order of the sums of a row does not depend on the other rows of the batch. So a result is the same, bit by bit, in
every batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from checkpoint.lowbit import LowBitWeight
from language_service.kernels.interface import Head, Layer, Layers, Projection
from language_service.kernels.layers import LayerByLayer
from language_service.kernels.library import NativeLibrary, address, fastest
from language_service.kernels.low_bit_packing import can_pack
from language_service.kernels.native_layers import NativeLayers, can_compute
from language_service.kernels.native_low_bit import NativeLowBitHead, NativeLowBitProjection
from language_service.kernels.native_projection import NativeHead, NativeProjection
from language_service.kernels.plain_low_bit import LowBitHead, LowBitProjection


class NativeKernels:
    """Implements `Kernels` for bfloat16 on the CPU.

    Tensors must be contiguous, except the heads given to `rotate_heads`.
    """

    angle_dtype = torch.float32
    skips_negative_slots = False

    def __init__(self, native: NativeLibrary | None = None) -> None:
        """Take kernels, by default those of the fastest set.

        Raises:
            RuntimeError: none can run here.
        """
        native = native or fastest()
        if native is None:
            raise RuntimeError("the native kernels cannot be used here")
        self.library = native

    @property
    def name(self) -> str:
        """The instruction set."""
        return self.library.name

    def project(self, weight_NK: Tensor | LowBitWeight, bias_N: Tensor | None) -> Projection:
        """Return a projection with a copy of these weights."""
        if isinstance(weight_NK, LowBitWeight):
            if can_pack(weight_NK):
                return NativeLowBitProjection(self.library, weight_NK, bias_N)
            return LowBitProjection(weight_NK, bias_N)
        return NativeProjection(self.library, weight_NK, bias_N)

    def head(self, weight_VD: Tensor | LowBitWeight) -> Head:
        """Return a head with a copy of these weights."""
        if isinstance(weight_VD, LowBitWeight):
            native = weight_VD.scheme == "w8a8" and can_pack(weight_VD)
            return NativeLowBitHead(self.library, weight_VD) if native else LowBitHead(weight_VD)
        return NativeHead(self.library, weight_VD)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Normalise `x_TD` in float32 and round once."""
        out_TD = torch.empty_like(x_TD)
        self.library.rms_norm(
            x_TD.data_ptr(), weight_D.data_ptr(), out_TD.data_ptr(), *x_TD.shape, eps, torch.get_num_threads()
        )
        return out_TD

    def rotate_heads(
        self, x_THE: Tensor, weight_E: Tensor | None, eps: float, cos_T1F: Tensor, sin_T1F: Tensor
    ) -> Tensor:
        """Normalise and rotate in place, in float32, rounded once."""
        num_rows, heads, size = x_THE.shape
        self.library.rotate_heads(
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
        self.library.swiglu(x_TM.data_ptr(), out.data_ptr(), num_rows, width, torch.get_num_threads())
        return out

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        """Return the layers, computed in one call if possible."""
        if can_compute(layers):
            return NativeLayers(self.library, self, config, layers)
        return LayerByLayer(self, config, layers)


def largest(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logits [B] and their tokens [B].

    Of equal logits, the first one counts.

    The value is NaN if any logit of the row is NaN. Where the native kernel cannot run, torch computes the same, about
    ten times slower.
    """
    native = fastest() if logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32 else None
    if native is None or not logits_BV.is_contiguous():
        return logits_BV.max(dim=-1)
    num_rows, vocab_size = logits_BV.shape
    values_B, tokens_B = torch.empty(num_rows), torch.empty(num_rows, dtype=torch.int64)
    native.largest(
        logits_BV.data_ptr(),
        values_B.data_ptr(),
        tokens_B.data_ptr(),
        num_rows,
        vocab_size,
        torch.get_num_threads(),
    )
    return values_B, tokens_B
