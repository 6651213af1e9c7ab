"""Order, learned positions and rotary angles of patches.

Patches of an image lie in blocks of merge x merge, so that the patches of one visual token are neighbours.

p patches of one image, C = 3 x patch x patch pixels of a patch, F half of a head's dimensions
"""

import torch
from torch import Tensor

from checkpoint.families import Qwen3VisionConfig

Grid = tuple[int, int]  # rows and columns of patches of one image


def to_patches(pixels_3HW: Tensor, patch: int, merge: int) -> Tensor:
    """Return an image's patches [p, C], block by block."""
    rows, columns = pixels_3HW.shape[1] // patch, pixels_3HW.shape[2] // patch
    grid = pixels_3HW.view(3, rows, patch, columns, patch).permute(1, 3, 0, 2, 4)
    return in_blocks(grid, merge).flatten(1)


def interpolation(grid: Grid, config: Qwen3VisionConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the four learned positions around each patch.

    The position of a patch is their weighted sum: bilinear interpolation with aligned corners.

    Returns:
        Their indices [4, p], int64, and their weights [4, p], float32.
    """
    side = config.grid_side
    (top, bottom, down), (left, right, across) = (_between(length, side, device) for length in grid)
    corners = [
        (top, left, (1 - down)[:, None] * (1 - across)),
        (top, right, (1 - down)[:, None] * across),
        (bottom, left, down[:, None] * (1 - across)),
        (bottom, right, down[:, None] * across),
    ]
    indices = [in_blocks(row[:, None] * side + column, config.merge_size) for row, column, _ in corners]
    weights = [in_blocks(weight, config.merge_size) for *_, weight in corners]
    return torch.stack(indices), torch.stack(weights)


def rotary_angles(grid: Grid, config: Qwen3VisionConfig, device: torch.device) -> Tensor:
    """Return the rotary angles of rows and columns, [p, F], float32."""
    quarter = config.head_dim // 4
    exponents = torch.arange(quarter, dtype=torch.float32, device=device) / quarter
    frequencies = 1.0 / config.rope_theta**exponents
    row = torch.arange(grid[0], device=device)[:, None].expand(grid)
    column = torch.arange(grid[1], device=device).expand(grid)
    places = in_blocks(torch.stack([row, column], dim=-1), config.merge_size)
    return (places[..., None].float() * frequencies).flatten(1)


def in_blocks(grid: Tensor, merge: int) -> Tensor:
    """Return a grid [rows, columns, ...] block by block.

    A block has merge x merge cells. The result is [rows x columns, ...].
    """
    rows, columns, *rest = grid.shape
    blocks = grid.reshape(rows // merge, merge, columns // merge, merge, *rest).transpose(1, 2)
    return blocks.reshape(rows * columns, *rest)


def _between(length: int, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the learned positions around each of `length` places.

    The places are evenly spaced. The third result is the weight of the upper neighbour.
    """
    places = torch.arange(length, dtype=torch.float32, device=device) * (side - 1) / max(length - 1, 1)
    lower = places.long()
    return lower, (lower + 1).clamp(max=side - 1), places - lower
