"""The arithmetic that the decoder needs, as protocols."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from checkpoint.lowbit import LowBitWeight
from language_service.model import Attend, ImageRows

# T tokens, R of them wanted, K inputs and N outputs of a projection, V vocabulary, D model dim, M feed-forward width,
# H heads, E head dim, F = E/2 frequencies

Angles = tuple[Tensor, Tensor]  # cosines and sines [T, 1, F] of the tokens' positions


class Projection(Protocol):
    """A linear map.

    Its weights have the layout that is read fastest.
    """

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N], plus `residual_TN`."""
        ...


class Head(Protocol):
    """The projection to the vocabulary.

    With tied embeddings, its rows are also the token embeddings.
    """

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return logits [T, V]. The next call may overwrite them."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the rows [..., D] of `token_ids` [...]."""
        ...


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer."""

    attention_norm: Tensor
    qkv: Projection  # queries, keys and values in one projection
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection


class Layers(Protocol):
    """All layers of a decoder."""

    def __call__(
        self, hidden_TD: Tensor, angles: Angles, attend: Attend, rows_R: Tensor, images: Sequence[ImageRows] = ()
    ) -> Tensor:
        """Return the last layer's outputs [R, D] for `rows_R`.

        Rows must ascend.

        The last layer computes keys and values for all tokens, and everything else for these rows only. DeepStack
        level l of `images` is added to the output of layer l. The last layer has no level.
        """
        ...


class Kernels(Protocol):
    """The operations of a layer.

    `project` and `head` may keep the weights they get, or copy them.
    """

    @property
    def name(self) -> str:
        """Which kernels these are, for people."""
        ...

    angle_dtype: torch.dtype  # type of the cosines and sines for `rotate_heads`
    skips_negative_slots: bool  # whether keys and values of a token with a negative slot are not stored

    def project(self, weight_NK: Tensor | LowBitWeight, bias_N: Tensor | None) -> Projection:
        """Return a projection with these weights."""
        ...

    def head(self, weight_VD: Tensor | LowBitWeight) -> Head:
        """Return a head with these weights."""
        ...

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Scale each row to unit RMS, then by the weight."""
        ...

    def rotate_heads(
        self, x_THE: Tensor, weight_E: Tensor | None, eps: float, cos_T1F: Tensor, sin_T1F: Tensor
    ) -> Tensor:
        """Normalise the heads, then rotate them by their tokens' angles.

        Without a weight, heads are only rotated. May work in place.
        """
        ...

    def swiglu(self, x_TM: Tensor) -> Tensor:
        """Return silu(gate) * up, [T, M / 2].

        A row is gate, then up.
        """
        ...

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        """Return the layers ready to compute.

        Their projections must come from `project`.
        """
        ...
