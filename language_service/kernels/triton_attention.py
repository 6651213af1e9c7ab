"""Decode attention in Triton, which reads cache blocks in place.

Each program computes the heads of one group for one sequence. Long contexts are split between programs, as in
FlashDecoding (https://pytorch.org/blog/flash-decoding/), because a few sequences would not fill a GPU. A second kernel
joins the parts. Importing this module needs Triton.

Letters as in `decode_attention`, and K parts of a context
"""

import math
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from language_service.kernels.decode_attention import AttendDecoded

TILE = 64  # positions that a program reads at once
_MIN_ROWS = 16  # rows of the smallest matrix product
_MAX_PARTS = 64
_MIN_TILES = 2  # tiles of a part, or joining would take longer than it saves
_LOG2_E = 1 / math.log(2)


@triton.jit
def attend_range(
    q,
    kv_2PSGE,
    table,
    first,
    last,
    own,
    kv_head,
    value_offset,
    scale,
    num_kv_heads: tl.constexpr,
    num_rows: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
):
    """Attend the cached positions from `first` to before `last`.

    A row sees positions up to its own. Returns the state of an online softmax: each row's largest score, sum of
    weights, and weighted sum of values.
    """
    elements, offsets = tl.arange(0, head_dim), tl.arange(0, tile)
    largest = tl.full([num_rows], float("-inf"), tl.float32)
    total = tl.zeros([num_rows], tl.float32)
    sums = tl.zeros([num_rows, head_dim], tl.float32)
    for start in range(first, last, tile):
        positions = start + offsets
        is_cached = positions < last
        blocks = tl.load(table + positions // block_size, mask=is_cached, other=0)
        slots = blocks.to(tl.int64) * block_size + positions % block_size
        places = (slots * num_kv_heads + kv_head)[:, None] * head_dim + elements[None, :]
        k = tl.load(kv_2PSGE + places, mask=is_cached[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(is_cached[None, :] & (positions[None, :] <= own[:, None]), scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        factor, weights = tl.exp2(largest - new_largest), tl.exp2(scores - new_largest[:, None])
        v = tl.load(kv_2PSGE + value_offset + places, mask=is_cached[:, None], other=0.0)
        total = total * factor + tl.sum(weights, 1)
        sums = sums * factor[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = new_largest
    return largest, total, sums


@triton.jit
def _attend_part(
    q_NHE,
    kv_2PSGE,
    tables_NM,
    lengths_N,
    out_NHE,
    sums_NHKE,
    scales_NHK2,
    scale,
    q_stride,
    value_offset,
    table_width,
    num_parts,
    num_kv_heads: tl.constexpr,
    group_size: tl.constexpr,
    num_rows: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
    is_split: tl.constexpr,
):
    sequence, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths_N + sequence).to(tl.int32)
    rows, elements = tl.arange(0, num_rows), tl.arange(0, head_dim)
    q_heads = sequence.to(tl.int64) * q_stride + (kv_head * group_size + rows) * head_dim
    heads = (sequence * num_kv_heads + kv_head) * group_size + rows
    is_head = rows < group_size
    q = tl.load(q_NHE + q_heads[:, None] + elements[None, :], mask=is_head[:, None], other=0.0)
    tiles_per_part = tl.cdiv(tl.cdiv(length, tile), num_parts)
    first, last = part * tiles_per_part * tile, tl.minimum((part + 1) * tiles_per_part * tile, length)
    largest, total, sums = attend_range(
        q,
        kv_2PSGE,
        tables_NM + sequence * table_width,
        first,
        last,
        tl.zeros([num_rows], tl.int32) + length,  # a decoding token sees all
        kv_head,
        value_offset,
        scale,
        num_kv_heads,
        num_rows,
        head_dim,
        block_size,
        tile,
    )
    if is_split:
        parts = heads * num_parts + part
        tl.store(sums_NHKE + parts[:, None] * head_dim + elements[None, :], sums, mask=is_head[:, None])
        tl.store(scales_NHK2 + parts * 2, largest, mask=is_head)
        tl.store(scales_NHK2 + parts * 2 + 1, total, mask=is_head)
    else:
        out = (sums / total[:, None]).to(out_NHE.dtype.element_ty)
        tl.store(out_NHE + heads[:, None] * head_dim + elements[None, :], out, mask=is_head[:, None])


@triton.jit
def _join_parts(sums_NHKE, scales_NHK2, out_NHE, num_parts: tl.constexpr, head_dim: tl.constexpr):
    row = tl.program_id(0)
    elements = tl.arange(0, head_dim)
    parts = row * num_parts + tl.arange(0, num_parts)
    largest = tl.load(scales_NHK2 + parts * 2)  # -inf if the context is shorter
    factors = tl.exp2(largest - tl.max(largest, 0))
    total = tl.sum(tl.load(scales_NHK2 + parts * 2 + 1) * factors, 0)
    sums = tl.load(sums_NHKE + parts[:, None] * head_dim + elements[None, :])
    out = tl.sum(sums * factors[:, None], 0) / total
    tl.store(out_NHE + row * head_dim + elements, out.to(out_NHE.dtype.element_ty))


class TritonAttention:
    """Implements `DecodeAttention` with one or two kernels a layer."""

    name = "triton"

    def __init__(self, num_processors: int, *, tile: int = TILE) -> None:
        """Plan for a GPU.

        Args:
            num_processors: its multiprocessors, to choose in how many parts a context is split.
            tile: positions that a program reads at once, a power of two from 16.
        """
        self._num_processors, self._tile = num_processors, tile

    def plan(self, tables_NM: Tensor, lengths_N: Tensor) -> AttendDecoded:
        """Return attention for one forward pass, see `DecodeAttention`."""
        return partial(self._attend, tables_NM, lengths_N)

    def _attend(self, tables_NM: Tensor, lengths_N: Tensor, q_NHE: Tensor, kv_2PSGE: Tensor) -> Tensor:
        (num_sequences, num_heads, head_dim), num_blocks = q_NHE.shape, tables_NM.shape[1]
        block_size, num_kv_heads = kv_2PSGE.shape[2:4]
        group_size = num_heads // num_kv_heads
        num_parts = self._num_parts(num_sequences * num_kv_heads, num_blocks * block_size)
        if q_NHE.stride()[1:] != (head_dim, 1):
            q_NHE = q_NHE.contiguous()
        out_NHE = torch.empty_like(q_NHE, memory_format=torch.contiguous_format)
        # Without parts, nothing is written there.
        shape = (num_sequences, num_heads, num_parts) if num_parts > 1 else (1, 1, 1)
        sums_NHKE = torch.empty(*shape, head_dim, dtype=torch.float32, device=q_NHE.device)
        scales_NHK2 = torch.empty(*shape, 2, dtype=torch.float32, device=q_NHE.device)
        _attend_part[num_sequences, num_kv_heads, num_parts](
            q_NHE,
            kv_2PSGE,
            tables_NM,
            lengths_N,
            out_NHE,
            sums_NHKE,
            scales_NHK2,
            _LOG2_E / math.sqrt(head_dim),
            q_NHE.stride(0),
            kv_2PSGE.stride(0),
            num_blocks,
            num_parts,
            num_kv_heads=num_kv_heads,
            group_size=group_size,
            num_rows=max(_MIN_ROWS, triton.next_power_of_2(group_size)),
            head_dim=head_dim,
            block_size=block_size,
            tile=self._tile,
            is_split=num_parts > 1,
        )
        if num_parts > 1:
            _join_parts[num_sequences * num_heads,](
                sums_NHKE, scales_NHK2, out_NHE, num_parts=num_parts, head_dim=head_dim
            )
        return out_NHE

    def _num_parts(self, num_programs: int, num_positions: int) -> int:
        """Return in how many parts each context is split.

        Depends on shapes only. A power of two, so that few kernels are compiled.
        """
        wanted = 2 * self._num_processors // num_programs
        useful = min(_MAX_PARTS, num_positions // (self._tile * _MIN_TILES))
        return 1 << max(1, min(wanted, useful)).bit_length() - 1


def supports(head_dim: int, dtype: torch.dtype) -> bool:
    """Return whether `TritonAttention` can compute heads of this size."""
    return head_dim >= 16 and head_dim & (head_dim - 1) == 0 and dtype in (torch.float32, torch.bfloat16)
