"""Optimisers: Muon for matrices, AdamW for the rest, one schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate: linear warm-up, plateau, linear decay to zero.

    The plateau does not depend on the length of the run, so a run may be shortened or prolonged until the decay begins
    (warm-up, stable, decay in Hu et al., "MiniCPM", 2024).
    """

    num_steps: int
    peak: float = 4e-3
    num_warm_up_steps: int = 50
    decay_share: float = 0.6  # share of the run that decays

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = (step + 1) / self.num_warm_up_steps
        fall = (self.num_steps - step) / math.ceil(self.num_steps * self.decay_share)
        return self.peak * max(0.0, min(1.0, rise, fall))


class Optimisers:
    """Muon and AdamW behind one interface.

    Muon (Jordan, 2024) makes all directions of a matrix learn at the same speed. Its updates are scaled to the size of
    AdamW's (Liu et al., "Muon is scalable", 2025), so both follow one schedule. AdamW uses half of its rate.
    """

    def __init__(self, model: nn.Module, max_gradient_norm: float = 1.0) -> None:
        self._parameters = list(model.parameters())
        self._max_gradient_norm = max_gradient_norm
        matrices = [parameter for name, parameter in model.named_parameters() if _is_matrix(name, parameter)]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self._parameters if id(parameter) not in chosen]
        self._optimisers: Sequence[tuple[torch.optim.Optimizer, float]] = (  # with each one's share of the rate
            (torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), 1.0),
            (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True), 0.5),
        )

    def step(self, rate: float) -> None:
        """Update the weights from their gradients, then clear the gradients."""
        nn.utils.clip_grad_norm_(self._parameters, self._max_gradient_norm)
        for optimiser, share in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad()

    def state(self) -> list[dict[str, object]]:
        """Return the state for `restore`."""
        return [optimiser.state_dict() for optimiser, _ in self._optimisers]

    def restore(self, state: Sequence[dict[str, object]]) -> None:
        """Continue from a saved state."""
        for (optimiser, _), one in zip(self._optimisers, state, strict=True):
            optimiser.load_state_dict(one)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a linear map, not an embedding."""
    is_embedding = name.endswith(("embed_tokens.weight", "modality_embedding.weight", "query"))
    return parameter.ndim == 2 and not is_embedding and not name.startswith("attribute_heads.")
