"""Pack weights with 8 or 4 bits into the panels of low_bit.h."""

import torch
from torch import Tensor
from torch.nn import functional

from checkpoint.lowbit import LowBitWeight
from language_service.kernels import huge_pages

# R rows at a time, P panels of 64 outputs each, Q quads of inputs, J pairs of inputs, G groups of inputs, H = K/2,
# B bytes of a panel, C bytes of a group of a panel, other letters as in `interface`

PANEL = 64  # low_bit_loops.h's kColumns
GROUPS = (32, 64, 128)  # inputs with a common scale, for 4 bits
_QUAD = 4  # inputs that one instruction multiplies
_SUMMED_ROWS = 1024


def can_pack(weight: LowBitWeight) -> bool:
    """Return whether there is a panel form for a weight."""
    num_inputs = weight.shape[1]
    if weight.scheme == "w8a8":
        return weight.group == num_inputs and weight.zeros is None
    return weight.group in GROUPS and num_inputs % weight.group == 0


def pack(weight: LowBitWeight) -> Tensor:
    """Return the panels of a weight as bytes [P, B]."""
    return _pack_w8a8(weight) if weight.scheme == "w8a8" else _pack_groups(weight)


def unpack_w8a8_rows(panels_PB: Tensor, num_inputs: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return values [..., K] and scales [..., 1] of some outputs."""
    num_bytes = _num_quads(num_inputs) * PANEL * _QUAD
    values_PQ64x4 = panels_PB[:, :num_bytes].view(torch.int8).view(len(panels_PB), -1, PANEL, _QUAD)
    scales_P64 = panels_PB[:, num_bytes : num_bytes + 4 * PANEL].view(torch.float32)
    values = values_PQ64x4[rows // PANEL, :, rows % PANEL].flatten(-2)[..., :num_inputs]
    return values, scales_P64[rows // PANEL, rows % PANEL, None]


def scale_bytes(weight: LowBitWeight) -> int:
    """Return the bytes of a packed scale."""
    return 2 if weight.scales.dtype == torch.bfloat16 and weight.scheme != "w8a8" else 4


def _pack_w8a8(weight: LowBitWeight) -> Tensor:
    num_inputs = weight.shape[1]
    num_quads = _num_quads(num_inputs)
    missing, values_NK = num_quads * _QUAD - num_inputs, _whole_panels(weight.values)
    values_NK = functional.pad(values_NK, (0, missing)) if missing else values_NK
    num_bytes = num_quads * PANEL * _QUAD
    panels_PB = huge_pages.empty((len(values_NK) // PANEL, num_bytes + 8 * PANEL), torch.uint8)
    quads_PQ64x4 = panels_PB[:, :num_bytes].view(torch.int8).view(-1, num_quads, PANEL, _QUAD)
    quads_PQ64x4.copy_(values_NK.view(-1, PANEL, num_quads, _QUAD).transpose(1, 2))
    scales_N = _whole_panels(weight.scales.float()).flatten()
    panels_PB[:, num_bytes : num_bytes + 4 * PANEL].view(torch.float32).copy_(scales_N.view(-1, PANEL))
    panels_PB[:, num_bytes + 4 * PANEL :].view(torch.int32).copy_(_sums(values_NK).view(-1, PANEL))
    return panels_PB


def _sums(values_NK: Tensor) -> Tensor:
    """Return the sum of each row, [N]."""
    sums_N = torch.empty(len(values_NK), dtype=torch.int32)
    # torch sums a copy in four times the size. So a part at a time, in memory that glibc cannot leave unused.
    part_RK = torch.empty(_SUMMED_ROWS, values_NK.shape[1], dtype=torch.int32)
    for first in range(0, len(values_NK), _SUMMED_ROWS):
        rows = slice(first, first + _SUMMED_ROWS)
        copied_RK = part_RK[: len(values_NK[rows])].copy_(values_NK[rows])
        torch.sum(copied_RK, dim=1, dtype=torch.int32, out=sums_N[rows])
    return sums_N


def _pack_groups(weight: LowBitWeight) -> Tensor:
    values_NH = _whole_panels(weight.values)
    weights = _pack_words(values_NH) if weight.scheme == "w4a16" else _pack_quads(values_NH)
    num_panels, num_groups = len(values_NH) // PANEL, weight.shape[1] // weight.group
    scales_NG = _whole_panels(weight.scales if scale_bytes(weight) == 2 else weight.scales.float())
    parts_PGC = [weights.view(num_panels, num_groups, -1), _by_group(scales_NG)]
    if weight.zeros is not None:
        parts_PGC.append(_by_group(_whole_panels(weight.zeros)))
    num_bytes = sum(part.shape[-1] for part in parts_PGC)
    panels_PGC = huge_pages.empty((num_panels, num_groups, num_bytes), torch.uint8)
    torch.cat(parts_PGC, dim=-1, out=panels_PGC)
    return panels_PGC.flatten(1)


def _pack_words(values_NH: Tensor) -> Tensor:
    """Return words of four columns, [P, J, 16, 2 (input), 2 (byte)]."""
    both_NH2 = torch.stack([values_NH & 15, values_NH >> 4], dim=-1)
    columns = both_NH2.view(-1, 4, 16, *both_NH2.shape[1:])
    bytes_ = torch.stack([columns[:, 0] | columns[:, 1] << 4, columns[:, 2] | columns[:, 3] << 4], dim=-1)
    return bytes_.transpose(1, 2).contiguous()


def _pack_quads(values_NH: Tensor) -> Tensor:
    """Return bytes of two columns, [P, Q, 2, 16, 4 (input)]."""
    values_NK = torch.stack([values_NH & 15, values_NH >> 4], dim=-1).flatten(1)
    columns = values_NK.view(-1, 2, 2, 16, values_NK.shape[1] // _QUAD, _QUAD)
    return (columns[:, :, 0] | columns[:, :, 1] << 4).permute(0, 3, 1, 2, 4).contiguous()


def _by_group(numbers_NG: Tensor) -> Tensor:
    """Return numbers as bytes [P, G, C]."""
    return numbers_NG.view(-1, PANEL, numbers_NG.shape[1]).transpose(1, 2).contiguous().view(torch.uint8)


def _whole_panels(rows: Tensor) -> Tensor:
    missing = -len(rows) % PANEL
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows.contiguous()


def _num_quads(num_inputs: int) -> int:
    return -(-num_inputs // _QUAD)
