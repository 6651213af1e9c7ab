"""Rotary positions: rotate pairs of elements by the position.

The pairs of a head are (i, i + E/2). Released Llama and Qwen weights are trained with this pairing. With a
`mrope_section`, a position has three parts, and each pair uses one of them (interleaved, as in Qwen3-VL).
"""

import math

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig, RopeScaling

# T tokens, H heads, E head dim, F = E/2 frequencies

_ROW, _COLUMN = 1, 2  # parts of a position. Part 0 is the time.


class Rotary:
    """Computes the angles of positions.

    Not a module, because the frequencies are never loaded and must stay float32 when the weights are cast.
    """

    def __init__(self, config: LanguageConfig) -> None:
        # Explicitly on the CPU, so that a decoder built on the meta device has real frequencies.
        exponents_F = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu") / config.head_dim
        frequencies_F = 1.0 / config.rope_theta**exponents_F
        self.frequencies_F = scale_frequencies(frequencies_F, config.rope_scaling)
        self._parts_F = _parts_of(config.mrope_section, len(frequencies_F))

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the positions' angles.

        Both are [T, 1, E/2] in `dtype`.

        Args:
            positions: [T], or [3, T] with the parts time, row and column. Three equal parts give the same as [T].
            dtype: of the result.
        """
        self.frequencies_F = self.frequencies_F.to(positions.device)
        if positions.dim() == 1:
            positions_TF = positions[:, None]
        else:
            self._parts_F = self._parts_F.to(positions.device)
            positions_TF = positions.T[:, self._parts_F]
        angles_TF = positions_TF.float() * self.frequencies_F
        return angles_TF.cos()[:, None].to(dtype), angles_TF.sin()[:, None].to(dtype)


def rotate(x_THE: Tensor, cos_T1F: Tensor, sin_T1F: Tensor) -> Tensor:
    """Rotate the pairs of every head by its token's angles."""
    first, second = x_THE.chunk(2, dim=-1)
    return torch.cat([first * cos_T1F - second * sin_T1F, second * cos_T1F + first * sin_T1F], dim=-1)


def scale_frequencies(frequencies_F: Tensor, scaling: RopeScaling | None) -> Tensor:
    """Reduce the frequencies for a longer context.

    So the angles stay in the range of the training.

    'linear' divides all frequencies by the factor. 'llama3' (as published with Llama 3.1) keeps high frequencies, which
    distinguish neighbours. It divides the frequencies with a wavelength above the original context, and blends between.
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


def _parts_of(section: tuple[int, int, int] | None, num_frequencies: int) -> Tensor:
    """Return the part of a position for each frequency, [F].

    Args:
        section: number of frequencies for time, row and column. None uses the time only.
        num_frequencies: F.
    """
    parts_F = torch.zeros(num_frequencies, dtype=torch.long, device="cpu")
    if section is not None:
        for part in (_ROW, _COLUMN):
            parts_F[part : 3 * section[part] : 3] = part
    return parts_F
