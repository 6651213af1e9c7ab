"""Replace parts of a model by faster ones.

Letters as in `vision_service.model.qwen3_vl`, and B images with N patches each
"""

import torch
from torch import Tensor, nn

from vision_service.kernels.native_attention import open_native_attention
from vision_service.model import Attend, Attention, LinearAdd, LinearGelu, PlainAttend, SelfAttention

_ROWS = 512  # rows that oneDNN lays the weights out for. Also suits fewer and more


class OneDnnLinear(nn.Module):
    """A linear layer with weights in oneDNN's own layout.

    `nn.Linear` would lay them out again on every call. GELU is part of the same kernel.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()
        gelu = linear.approximate if isinstance(linear, LinearGelu) else None
        self._then: tuple[str, list[float], str] = ("none", [], "") if gelu is None else ("gelu", [], gelu)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, *self._then)
        return out


class OneDnnLinearAdd(OneDnnLinear):
    """A linear layer whose kernel also adds another tensor."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """Return [..., outputs], rounded once."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, residual.contiguous(), self._weight, self._bias, "add"
        )
        return out


def accelerate(model: nn.Module) -> None:
    """Make a bfloat16 model on a CPU faster, in place.

    Its parameters are no longer there to be read. Parts for which this processor has nothing faster stay.
    """
    attend = open_native_attention()
    has_onednn = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for module in list(model.modules()):
        if attend is not None and isinstance(module, Attention):
            module.attend = attend
        if attend is not None and isinstance(module, SelfAttention):
            module.attend = without_positions(attend)
        if has_onednn:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(
                        module, name, OneDnnLinearAdd(child) if isinstance(child, LinearAdd) else OneDnnLinear(child)
                    )


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
