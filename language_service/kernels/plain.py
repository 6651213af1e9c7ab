"""Kernels in torch, for any device and type."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from checkpoint.families import LanguageConfig
from checkpoint.lowbit import LowBitWeight
from language_service.kernels.interface import Head, Layer, Layers, Projection
from language_service.kernels.layers import LayerByLayer
from language_service.kernels.plain_low_bit import LowBitHead, LowBitProjection
from language_service.model import rotate


class PlainProjection:
    """A projection that uses the weights as they are."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        self._weight_NK, self._bias_N = weight_NK, bias_N

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N], plus `residual_TN`."""
        out_TN = functional.linear(x_TK, self._weight_NK, self._bias_N)
        return out_TN if residual_TN is None else out_TN.add_(residual_TN)


class PlainHead:
    """A head that uses the weights as they are."""

    def __init__(self, weight_VD: Tensor) -> None:
        self._weight_VD = weight_VD

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return logits [T, V]."""
        return functional.linear(x_TD, self._weight_VD)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the rows [..., D] of `token_ids`."""
        return functional.embedding(token_ids, self._weight_VD)


class PlainKernels:
    """Implements `Kernels` for one type of weights."""

    name = "torch"
    skips_negative_slots = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.angle_dtype = dtype

    def project(self, weight_NK: Tensor | LowBitWeight, bias_N: Tensor | None) -> Projection:
        """Return a projection with these weights."""
        if isinstance(weight_NK, LowBitWeight):
            return LowBitProjection(weight_NK, bias_N)
        return PlainProjection(weight_NK, bias_N)

    def head(self, weight_VD: Tensor | LowBitWeight) -> Head:
        """Return a head with these weights."""
        return LowBitHead(weight_VD) if isinstance(weight_VD, LowBitWeight) else PlainHead(weight_VD)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Normalise `x_TD` in float32 and round once."""
        return functional.rms_norm(x_TD.float(), weight_D.shape, weight_D.float(), eps).type_as(x_TD)

    def rotate_heads(
        self, x_THE: Tensor, weight_E: Tensor | None, eps: float, cos_T1F: Tensor, sin_T1F: Tensor
    ) -> Tensor:
        """Return the heads normalised and rotated."""
        return rotate(x_THE if weight_E is None else self.rms_norm(x_THE, weight_E, eps), cos_T1F, sin_T1F)

    def swiglu(self, x_TM: Tensor) -> Tensor:
        """Return silu(gate) * up, [T, M / 2]."""
        gate, up = x_TM.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        """Return the layers, computed one after the other."""
        return LayerByLayer(self, config, layers)


class OneDnnKernels(PlainKernels):
    """Plain kernels, but with projections by oneDNN.

    oneDNN lays the weights out for this processor, also for AMX.
    """

    name = "oneDNN"

    def project(self, weight_NK: Tensor | LowBitWeight, bias_N: Tensor | None) -> Projection:
        """Return a projection with these weights."""
        if isinstance(weight_NK, LowBitWeight):
            return super().project(weight_NK, bias_N)
        return OneDnnProjection(weight_NK, bias_N)


class OneDnnProjection:
    """A projection with weights in oneDNN's own layout."""

    _ROWS = 32  # rows that oneDNN lays the weights out for. Also suits single rows and prompts.

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_NK.contiguous(), self._ROWS)
        self._bias_N = bias_N

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N], plus `residual_TN`."""
        linear = torch.ops.mkldnn._linear_pointwise
        out_TN: Tensor
        if residual_TN is None:
            out_TN = linear(x_TK, self._weight, self._bias_N, "none", [], "")
        else:
            out_TN = linear.binary(x_TK, residual_TN, self._weight, self._bias_N, "add")
        return out_TN
