"""Sine-cosine positions of patches: tables that are computed, never stored.

N patches, G patches a side, W width
"""

import torch
from torch import Tensor

_BASE = 10_000.0


def sincos_1d(num_patches: int, width: int) -> Tensor:
    """Return the table [N, W] of Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.

    Patches count row by row; even columns hold sines, odd ones cosines, of the same angles.
    """
    angles_NF = _angles(num_patches, width)
    return torch.stack([angles_NF.sin(), angles_NF.cos()], dim=-1).flatten(1).float()


def sincos_2d(grid_size: int, width: int) -> Tensor:
    """Return the table [G * G, W] of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.

    The first half of the columns tells the patch's column, the second half its row; each half is sines, then cosines.
    """
    angles_GF = _angles(grid_size, width // 2)
    axis_GA = torch.cat([angles_GF.sin(), angles_GF.cos()], dim=1)
    columns_GGA = axis_GA.expand(grid_size, -1, -1)
    rows_GGA = axis_GA.unsqueeze(1).expand(-1, grid_size, -1)
    return torch.cat([columns_GGA, rows_GGA], dim=-1).flatten(0, 1).float()


def _angles(length: int, width: int) -> Tensor:
    """Return position x frequency, [length, width / 2], float64."""
    # The device is named because a model is built on the meta device before its weights are assigned, and a table
    # that no checkpoint holds must be real there, too.
    positions_N = torch.arange(length, dtype=torch.float64, device="cpu")
    frequencies_F = _BASE ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    return torch.outer(positions_N, frequencies_F)
