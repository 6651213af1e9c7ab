"""Replace parts of a model by faster ones.

Letters as in `vision_service.model.qwen3_vl`
"""

import torch
from torch import Tensor, nn

from vision_service.kernels.native_attention import open_native_attention
from vision_service.model import Attention, LinearGelu

_ROWS = 512  # rows that oneDNN lays the weights out for. Also suits fewer and more


class OneDnnLinear(nn.Module):
    """A linear layer with weights in oneDNN's own layout.

    `nn.Linear` would lay them out again on every call.
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


def accelerate(model: nn.Module) -> None:
    """Make a bfloat16 model on a CPU faster, in place.

    Its parameters are no longer there to be read. Parts for which this processor has nothing faster stay.
    """
    attend = open_native_attention()
    has_onednn = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for module in list(model.modules()):
        if attend is not None and isinstance(module, Attention):
            module.attend = attend
        if has_onednn:
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, OneDnnLinear(child))
