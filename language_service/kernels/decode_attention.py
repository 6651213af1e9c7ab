"""Attention over blocks of a cache.

Of decoding sequences, which have one new token each, and of chunks, which have several.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

# N sequences, M blocks per sequence, S block size, C = M S cached positions, P blocks of the cache, H query heads, G
# key-value heads, R = H / G heads of a group, E head dim

# attend(q_NHE, kv_2PSGE) -> out_NHE for the sequences of a plan, layer after layer.
AttendDecoded = Callable[[Tensor, Tensor], Tensor]


class DecodeAttention(Protocol):
    """Attention over one layer of a cache.

    It must consist of tensor operations with shapes that depend on the shapes of its arguments only. So a CUDA graph
    can record it.
    """

    name: str  # as in `AttentionName`

    def plan(self, tables_NM: Tensor, lengths_N: Tensor) -> AttendDecoded:
        """Return attention for one forward pass.

        Args:
            tables_NM: the blocks of each sequence, int64. Entries after its last block may be any block.
            lengths_N: its cached tokens with the new one, at least 1, int64.
        """
        ...


class ChunkAttention(Protocol):
    """Attention of many chunks in one call.

    A CUDA graph can record it, as `DecodeAttention`.
    """

    num_tokens: int  # most tokens of a tile

    def plan(self, tables_NM: Tensor, tiles_I4: Tensor) -> AttendDecoded:
        """Return attention for one forward pass.

        Its queries are of all tokens of the batch. Rows in no tile get any numbers.

        Args:
            tables_NM: the blocks of each sequence, int64.
            tiles_I4: neighbouring tokens of a sequence, int64. Row of `tables_NM`, row of the first token in the batch,
                its position, and number of tokens. A tile of zeros is ignored.
        """
        ...


class GatheredAttention:
    """Copies the blocks of each sequence, then uses torch's attention.

    Runs on every device.
    """

    name = "torch"

    def plan(self, tables_NM: Tensor, lengths_N: Tensor) -> AttendDecoded:
        """Return attention for one forward pass, see `DecodeAttention`."""
        mask_NC: Tensor | None = None

        def attend(q_NHE: Tensor, kv_2PSGE: Tensor) -> Tensor:
            nonlocal mask_NC
            if mask_NC is None:  # once for all layers
                num_positions = tables_NM.shape[1] * kv_2PSGE.shape[2]
                hidden_NC = torch.arange(num_positions, device=lengths_N.device) >= lengths_N[:, None]
                mask_NC = torch.zeros(hidden_NC.shape, dtype=q_NHE.dtype, device=q_NHE.device)
                mask_NC = mask_NC.masked_fill(hidden_NC, float("-inf"))
            k_NGCE, v_NGCE = kv_2PSGE[:, tables_NM].flatten(2, 3).transpose(2, 3)
            # With one token per sequence, the heads of a group form the rows of one query. So no key is repeated.
            q_NGRE = q_NHE.view(len(q_NHE), k_NGCE.shape[1], -1, k_NGCE.shape[3])
            out_NGRE = functional.scaled_dot_product_attention(q_NGRE, k_NGCE, v_NGCE, attn_mask=mask_NC[:, None, None])
            return out_NGRE.flatten(1, 2)

        return attend
