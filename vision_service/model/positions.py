"""Sine-cosine positions of patches, computed and never stored.

N patches, G patches a side, W width
"""

import torch
from torch import Tensor

_BASE = 10_000.0


def sincos_1d(num_patches: int, width: int) -> Tensor:
    """Return 1-D positions of patches, [N, W].

    Patches count row by row. Even columns contain sines, odd columns the cosines of the same angles.

    Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    angles_NF = _angles(num_patches, width)
    return torch.stack([angles_NF.sin(), angles_NF.cos()], dim=-1).flatten(1).float()


def sincos_2d(grid_size: int, width: int) -> Tensor:
    """Return 2-D positions of patches, [G * G, W].

    The first half of the columns encodes the patch's column, the second half its row. Each half contains sines, then
    cosines.

    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """
    angles_GF = _angles(grid_size, width // 2)
    axis_GA = torch.cat([angles_GF.sin(), angles_GF.cos()], dim=1)
    columns_GGA = axis_GA.expand(grid_size, -1, -1)
    rows_GGA = axis_GA.unsqueeze(1).expand(-1, grid_size, -1)
    return torch.cat([columns_GGA, rows_GGA], dim=-1).flatten(0, 1).float()


def _angles(length: int, width: int) -> Tensor:
    """Return position x frequency, [length, width / 2], float64."""
    # A model is built on the meta device, then its weights are assigned. No checkpoint contains this table, so it must
    # be computed on a real device even then.
    positions_N = torch.arange(length, dtype=torch.float64, device="cpu")
    frequencies_F = _BASE ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    return torch.outer(positions_N, frequencies_F)
