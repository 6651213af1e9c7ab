"""Rotary positions: each pair of a head's elements turns by an angle that grows with the position.

The pairs are (i, i + E/2), the half-rotation convention released Llama and Qwen weights were trained with.
"""

import math

import torch
from torch import Tensor

from checkpoint.config import LanguageConfig, RopeScaling

# T tokens, H heads, E head dim, F = E/2 frequencies


class Rotary:
    """Turns queries and keys by their positions.

    Not a module: frequencies are computed, never loaded, and must stay float32 whatever the weights are cast to.
    """

    def __init__(self, config: LanguageConfig) -> None:
        # On the CPU by name, so that a decoder built on the meta device still has real frequencies.
        exponents_F = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
        frequencies_F = 1.0 / config.rope_theta**exponents_F
        self.frequencies_F = scale_frequencies(frequencies_F, config.rope_scaling)

    def angles(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, each [T, 1, E/2] in `dtype`, of every position's angles."""
        self.frequencies_F = self.frequencies_F.to(positions_T.device)
        angles_TF = positions_T[:, None].float() * self.frequencies_F
        return angles_TF.cos()[:, None].to(dtype), angles_TF.sin()[:, None].to(dtype)


def rotate(x_THE: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    """Return `x_THE` with each pair (i, i + E/2) of every head turned by its token's angles."""
    first, second = x_THE.chunk(2, dim=-1)
    return torch.cat([first * cos_T1F - second * sin_T1F, second * cos_T1F + first * sin_T1F], dim=-1)


def scale_frequencies(frequencies_F: Tensor, scaling: RopeScaling | None) -> Tensor:
    """Return the frequencies slowed down so that a longer context spans the angles seen in training.

    'linear' slows all alike. 'llama3' keeps the fast ones, which tell neighbours apart, slows the ones whose
    wavelength exceeds the original context, and blends between the two (Llama 3.1's published scheme).
    """
    if scaling is None:
        return frequencies_F
    if scaling.kind == "linear":
        return frequencies_F / scaling.factor
    wavelengths_F = 2 * math.pi / frequencies_F
    turns_F = scaling.original_context_length / wavelengths_F
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep_F = ((turns_F - low) / (high - low)).clamp(0, 1)
    return keep_F * frequencies_F + (1 - keep_F) * frequencies_F / scaling.factor
