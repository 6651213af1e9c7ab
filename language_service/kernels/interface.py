"""What the decoder asks of the arithmetic it is served with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from checkpoint.config import LanguageConfig
from language_service.model import Attend

# T tokens, R of them wanted, K inputs and N outputs of a projection, V vocabulary, D model dim, M feed-forward width,
# H heads, E head dim, F = E/2 frequencies

Angles = tuple[Tensor, Tensor]  # cosines and sines [T, 1, F] of the tokens' positions


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


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer."""

    attention_norm: Tensor
    qkv: Projection  # queries, keys and values at once
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


class Layers(Protocol):
    """All layers of a decoder."""

    def __call__(self, hidden_TD: Tensor, angles: Angles, attend: Attend, rows_R: Tensor) -> Tensor:
        """Return the last layer's outputs [R, D] for `rows_R` of the batch, which ascend.

        The last layer's keys and values are made for all tokens, and nothing else of it, for these rows only.
        """
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

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        """Return the layers, whose projections are of `project`, ready to be computed."""
        ...
