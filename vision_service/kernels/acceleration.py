"""Replace parts of a model by faster ones.

Letters as in `vision_service.model.qwen3_vl`, and B images with N patches each
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vision_service.kernels.native_attention import open_native_attention
from vision_service.model import Attend, Attention, LinearAdd, LinearGelu, PlainAttend, SelfAttention

_ROWS = 512  # rows that oneDNN lays the weights out for. Also suits fewer and more


class OneDnnLinear(nn.Module):
    """A bfloat16 linear layer by oneDNN.

    GELU is part of the same kernel. Weights are laid out once, where `nn.Linear` would do it on every call. A wide
    layer is for processors without products of bfloat16: it widens weights and input to float32 on every call, which
    takes a small part of the time and no memory. Both sum in float32 and round the result once.
    """

    def __init__(self, linear: nn.Linear, *, is_wide: bool) -> None:
        super().__init__()
        weight, bias = linear.weight.detach().contiguous(), None if linear.bias is None else linear.bias.detach()
        self._weight = weight if is_wide else torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self._bias = bias.float() if is_wide and bias is not None else bias
        self._dtype = torch.float32 if is_wide else weight.dtype
        gelu = linear.approximate if isinstance(linear, LinearGelu) else None
        self._then: tuple[str, list[float], str] = ("none", [], "") if gelu is None else ("gelu", [], gelu)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        weight = self._weight.to(self._dtype)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self._dtype), weight, self._bias, *self._then)
        return out.to(x.dtype)


class OneDnnLinearAdd(OneDnnLinear):
    """A linear layer whose kernel also adds another tensor."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """Return [..., outputs], rounded once."""
        weight, addend = self._weight.to(self._dtype), residual.contiguous().to(self._dtype)
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x.to(self._dtype), addend, weight, self._bias, "add")
        return out.to(x.dtype)


class WideConv(nn.Module):
    """A bfloat16 convolution in float32, rounded once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._conv = conv.float()  # its weights are few, so they stay wide

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution returns."""
        out: Tensor = self._conv(x.float())
        return out.to(x.dtype)


def accelerate(model: nn.Module) -> None:
    """Make a bfloat16 model on a CPU faster, in place.

    Its parameters are no longer there to be read. Parts for which this processor has nothing faster stay.
    """
    native, is_wide = open_native_attention(), not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    for module in list(model.modules()):
        if isinstance(module, Attention | SelfAttention):
            if native is not None:
                module.attend = native if isinstance(module, Attention) else without_positions(native)
            elif is_wide:
                module.attend = in_float32(module.attend)
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and has_onednn:
                kind = OneDnnLinearAdd if isinstance(child, LinearAdd) else OneDnnLinear
                setattr(module, name, kind(child, is_wide=is_wide))
            if isinstance(child, nn.Conv2d) and is_wide:
                setattr(module, name, WideConv(child))


def in_float32(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return attention that computes in float32 and rounds once."""

    def attend_in_float32(qkv: Tensor, *others: Any) -> Tensor:
        return attend(qkv.float(), *others).to(qkv.dtype)

    return attend_in_float32


def without_positions(attend: Attend) -> PlainAttend:
    """Return attention without positions, by one with them.

    It rotates by nothing.
    """

    def attend_plainly(qkv_BN3HE: Tensor) -> Tensor:
        batch, length, _, num_heads, head_dim = qkv_BN3HE.shape
        cos_P1F = torch.ones(batch * length, 1, head_dim // 2)
        out_PW = attend(qkv_BN3HE.flatten(0, 1), cos_P1F, torch.zeros_like(cos_P1F), [length] * batch)
        return out_PW.view(batch, length, num_heads * head_dim)

    return attend_plainly
