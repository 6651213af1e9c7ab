"""Attention of prompt chunks in Triton, which reads cache blocks in place.

One launch computes all chunks of a step, and decoding tokens as chunks of one token. A program computes the heads of
one group for a few neighbouring tokens of a sequence, with an online softmax as in FlashAttention (Dao et al., 2022,
arXiv:2205.14135). Importing this module needs Triton.

Letters as in `decode_attention`, and T tokens of the batch, I tiles
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from language_service.kernels.decode_attention import AttendDecoded
from language_service.kernels.triton_attention import attend_range

_ROWS = 64  # queries of a program: tokens times heads of a group
_LOG2_E = 1 / math.log(2)


@triton.jit
def _attend_chunks(
    q_THE,
    kv_2PSGE,
    tables_NM,
    tiles_I4,
    out_THE,
    scale,
    q_stride,
    value_offset,
    table_width,
    num_kv_heads: tl.constexpr,
    group_size: tl.constexpr,
    padded_group: tl.constexpr,
    num_tokens: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
):
    index, kv_head = tl.program_id(0), tl.program_id(1)
    sequence, first_row = tl.load(tiles_I4 + index * 4), tl.load(tiles_I4 + index * 4 + 1)
    start, count = tl.load(tiles_I4 + index * 4 + 2).to(tl.int32), tl.load(tiles_I4 + index * 4 + 3).to(tl.int32)
    rows, elements = tl.arange(0, num_tokens * padded_group), tl.arange(0, head_dim)
    tokens, heads = rows // padded_group, kv_head * group_size + rows % padded_group
    is_row = (tokens < count) & (rows % padded_group < group_size)
    q_places = (first_row + tokens) * q_stride + heads * head_dim
    q = tl.load(q_THE + q_places[:, None] + elements[None, :], mask=is_row[:, None], other=0.0)
    # Every row sees position 0, which is in the first tile. So no row's largest score stays -inf.
    _, total, sums = attend_range(
        q,
        kv_2PSGE,
        tables_NM + sequence * table_width,
        0,
        start + count,  # a tile of no tokens starts at 0, so it reads nothing
        start + tokens,  # each row's token
        kv_head,
        value_offset,
        scale,
        num_kv_heads,
        num_tokens * padded_group,
        head_dim,
        block_size,
        tile,
    )
    total = tl.maximum(total, 1.0)  # the largest weight is 1. Only a tile of no tokens has none.
    out = (sums / total[:, None]).to(out_THE.dtype.element_ty)
    out_places = ((first_row + tokens) * num_kv_heads * group_size + heads) * head_dim
    tl.store(out_THE + out_places[:, None] + elements[None, :], out, mask=is_row[:, None])


class TritonChunkAttention:
    """Implements `ChunkAttention` with one kernel a layer."""

    def __init__(self, kv: Tensor, num_heads: int) -> None:
        """Plan for a cache [layers, 2, P, S, G, E] and H query heads."""
        self._group_size = num_heads // kv.shape[4]
        self._padded_group = triton.next_power_of_2(self._group_size)
        # Wider numbers fill the shared memory with fewer positions.
        self._tile = 64 if kv.dtype.itemsize == 2 else 32
        self.num_tokens = max(1, _ROWS // self._padded_group)

    def plan(self, tables_NM: Tensor, tiles_I4: Tensor) -> AttendDecoded:
        """Return attention for one forward pass, see `ChunkAttention`."""

        def attend(q_THE: Tensor, kv_2PSGE: Tensor) -> Tensor:
            head_dim = q_THE.shape[2]
            block_size, num_kv_heads = kv_2PSGE.shape[2:4]
            if q_THE.stride()[1:] != (head_dim, 1):
                q_THE = q_THE.contiguous()
            out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
            _attend_chunks[len(tiles_I4), num_kv_heads](
                q_THE,
                kv_2PSGE,
                tables_NM,
                tiles_I4,
                out_THE,
                _LOG2_E / math.sqrt(head_dim),
                q_THE.stride(0),
                kv_2PSGE.stride(0),
                tables_NM.shape[1],
                num_kv_heads=num_kv_heads,
                group_size=self._group_size,
                padded_group=self._padded_group,
                num_tokens=self.num_tokens,
                head_dim=head_dim,
                block_size=block_size,
                tile=self._tile,
            )
            return out_THE

        return attend
