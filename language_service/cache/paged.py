"""The tensors of the paged key-value cache, and attention over them."""

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from checkpoint.config import LanguageConfig
from language_service.kernels import huge_pages
from language_service.kernels.library import fits
from language_service.kernels.native_attention import NativeAttention
from language_service.model.attention import Attend

# T tokens of the batch, B sequences of a group, L new tokens of each, M blocks of each, C = M * block size cached
# positions, H query heads, G key-value heads, E head dim


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Shape of the paged KV cache."""

    num_blocks: int
    block_size: int = 16  # tokens per block

    @property
    def num_tokens(self) -> int:
        """Tokens the cache holds when full."""
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive new tokens of one sequence."""

    start: int  # tokens of the sequence before the span, all cached already
    length: int  # tokens of the span, at least 1
    blocks: Sequence[int]  # blocks of the sequence in order, enough for start + length tokens


@dataclass(frozen=True, slots=True)
class _Group:
    """Spans of equal length and like context, which attention takes in one call."""

    rows_BL: Tensor  # where the spans' tokens lie in the batch
    blocks_BM: Tensor
    mask_B1LC: Tensor  # 0 where the token sees the cached position, -inf where not


def bytes_per_block(config: LanguageConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes one block takes over all layers."""
    return config.num_layers * 2 * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize


class PagedCache:
    """Keys and values of all sequences, [layers, 2 (key, value), blocks, block size, G, E]."""

    def __init__(self, config: LanguageConfig, cache: CacheConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config = cache
        self.device = device
        shape = (config.num_layers, 2, cache.num_blocks, cache.block_size, config.num_kv_heads, config.head_dim)
        # Written now, not merely promised by the system: memory that is not there must stop the start, not a request.
        self.kv = huge_pages.empty(shape, dtype, device).zero_()
        self._native = NativeAttention(self.kv) if fits(config, dtype=dtype, device=device) else None

    def clear(self, blocks: Sequence[int]) -> None:
        """Fill `blocks`, which changed owner, with zeros.

        Positions past a sequence's end are read with weight 0, and 0 times a NaN is a NaN: what an earlier owner left
        must not reach the next one. The native kernels read nothing past the end.
        """
        if blocks and self._native is None:
            self.kv.index_fill_(2, torch.tensor(blocks, device=self.device), 0)

    def attend(self, spans: Sequence[Span]) -> Attend:
        """Return attention for one forward pass over the tokens of `spans`, laid end to end.

        Each call first stores the layer's keys and values of the new tokens; then each token sees the cached past of
        its own sequence and itself. Nothing else of the cache changes.
        """
        if self._native is not None:
            return self._attend_natively(self._native, spans)
        slots_T = self._slots(spans)
        groups = self._groups(spans)

        def attend(layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
            kv = self.kv[layer]
            kv.flatten(1, 2).index_copy_(1, slots_T, torch.stack([k_TGE, v_TGE]))
            out_THE = torch.empty_like(q_THE)
            for group in groups:
                k_BGCE, v_BGCE = kv[:, group.blocks_BM].flatten(2, 3).transpose(2, 3)
                q_BHLE = q_THE[group.rows_BL].transpose(1, 2)
                out_BHLE = functional.scaled_dot_product_attention(
                    q_BHLE, k_BGCE, v_BGCE, attn_mask=group.mask_B1LC, enable_gqa=True
                )
                out_THE[group.rows_BL] = out_BHLE.transpose(1, 2)
            return out_THE

        return attend

    def _attend_natively(self, attention: NativeAttention, spans: Sequence[Span]) -> Attend:
        spans_S4, tables = array("i"), array("i")
        row = 0
        for span in spans:
            spans_S4.extend((row, span.start, span.length, len(tables)))
            tables.extend(span.blocks)
            row += span.length
        return attention.plan(spans_S4, tables)

    def _slots(self, spans: Sequence[Span]) -> Tensor:
        """Return the cache slot, block x block size + offset, of every new token."""
        size = self.config.block_size
        slots = [
            span.blocks[position // size] * size + position % size
            for span in spans
            for position in range(span.start, span.start + span.length)
        ]
        return torch.tensor(slots, device=self.device)

    def _groups(self, spans: Sequence[Span]) -> list[_Group]:
        """Put together spans of equal length whose contexts differ by less than a factor of two.

        So all decoding sequences of like age share a call, and a short one never pays for a long one's padding.
        """
        members: defaultdict[tuple[int, int], list[tuple[int, Span]]] = defaultdict(list)
        row = 0
        for span in spans:
            members[span.length, self._num_blocks(span).bit_length()].append((row, span))
            row += span.length
        return [self._group(length, group) for (length, _), group in members.items()]

    def _group(self, length: int, members: list[tuple[int, Span]]) -> _Group:
        width = max(self._num_blocks(span) for _, span in members)
        # A short table is padded with the sequence's own first block: masked, and never another's numbers.
        tables = [
            [*span.blocks[: self._num_blocks(span)], *[span.blocks[0]] * (width - self._num_blocks(span))]
            for _, span in members
        ]
        steps_L = torch.arange(length, device=self.device)
        rows_B1 = torch.tensor([[row] for row, _ in members], device=self.device)
        starts_B1 = torch.tensor([[span.start] for _, span in members], device=self.device)
        positions_C = torch.arange(width * self.config.block_size, device=self.device)
        hidden_B1LC = positions_C > (starts_B1 + steps_L)[:, None, :, None]
        mask_B1LC = torch.zeros(hidden_B1LC.shape, dtype=self.kv.dtype, device=self.device)
        return _Group(
            rows_BL=rows_B1 + steps_L,
            blocks_BM=torch.tensor(tables, device=self.device),
            mask_B1LC=mask_B1LC.masked_fill_(hidden_B1LC, float("-inf")),
        )

    def _num_blocks(self, span: Span) -> int:
        return -(-(span.start + span.length) // self.config.block_size)
