"""Linear layers with the operation that follows them.

A backend can replace each by a kernel that does both at once.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional


class LinearGelu(nn.Linear):
    """A linear layer with GELU after it."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        """Return [..., out_features]."""
        return functional.gelu(super().forward(input), approximate=self.approximate)


class LinearAdd(nn.Linear):
    """A linear layer whose result is added to another tensor."""

    def forward(self, input: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]  # noqa: A002
        """Return [..., out_features], the shape of `residual`."""
        return residual + super().forward(input)
