"""What the decoder asks of the arithmetic it is served with."""

from typing import Protocol

import torch
from torch import Tensor

# T tokens, K inputs and N outputs of a projection, V vocabulary, D model dim, M feed-forward width, H heads, E head
# dim, F = E/2 frequencies


class Projection(Protocol):
    """A linear map, its weights in the order that is read fastest."""

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N], `residual_TN` added."""
        ...


class Head(Protocol):
    """The projection to the vocabulary, whose rows may be the embeddings of the tokens, too."""

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return [T, V], which the next call may overwrite."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the rows [..., D] of integer `token_ids` of any shape."""
        ...


class Kernels(Protocol):
    """The steps of a layer. Weights given to `project` and `head` may be kept, or may be read and let go."""

    angle_dtype: torch.dtype  # of the cosines and sines `turn_heads` takes

    def project(self, weight_NK: Tensor, bias_N: Tensor | None) -> Projection:
        """Return a projection with these weights."""
        ...

    def head(self, weight_VD: Tensor) -> Head:
        """Return a head with these weights."""
        ...

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return `x_TD` with each row scaled to unit root mean square, then by the weight."""
        ...

    def turn_heads(
        self, x_THE: Tensor, weight_E: Tensor | None, eps: float, cos_T1F: Tensor, sin_T1F: Tensor
    ) -> Tensor:
        """Return the heads normalised, if there is a weight, and turned by their tokens' angles; may overwrite them."""
        ...

    def swiglu(self, x_TM: Tensor) -> Tensor:
        """Return silu of the first half of each row times the second half, [T, M / 2]."""
        ...
