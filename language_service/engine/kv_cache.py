"""Store keys and values in blocks, and attend over them."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from checkpoint.families import LanguageConfig
from language_service.kernels import (
    AttendDecoded,
    AttentionName,
    ChunkAttention,
    DecodeAttention,
    GatheredAttention,
    KernelName,
    NativeAttention,
    PagedAttend,
    choose_attention,
    choose_chunk_attention,
    choose_decode_attention,
    huge_pages,
)
from language_service.model import Attend

# T tokens of the batch, B sequences of a group, L new tokens per sequence, M blocks per sequence, C = M * block size
# cached positions, H query heads, G key-value heads, E head dim

_SHORT = 256  # tokens of a chunk. Longer ones are worth launches of their own, by flash attention.


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Shape of the paged KV cache."""

    num_blocks: int
    block_size: int = 16  # tokens per block

    @property
    def num_tokens(self) -> int:
        """Tokens that fit into the cache."""
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class CacheSpan:
    """The place of one sequence's new tokens in the cache."""

    start: int  # position of the first new token. All before it are cached.
    length: int  # new tokens, at least 1
    blocks: Sequence[int]  # blocks of the sequence in order, enough for start + length tokens

    def num_blocks(self, block_size: int) -> int:
        """Return the number of blocks up to the span's end."""
        return -(-(self.start + self.length) // block_size)

    def slots(self, block_size: int) -> list[int]:
        """Return the cache slot of every new token.

        A slot is block x block size + offset.
        """
        positions = range(self.start, self.start + self.length)
        return [self.blocks[each // block_size] * block_size + each % block_size for each in positions]

    def fill_table(self, table: NDArray[np.int64], block_size: int) -> None:
        """Write what `table` returns into an array."""
        num_blocks = self.num_blocks(block_size)
        table[:num_blocks] = self.blocks[:num_blocks]
        table[num_blocks:] = self.blocks[0]

    def table(self, block_size: int, width: int) -> list[int]:
        """Return the used blocks, padded to `width` with the first.

        Attention masks the padding. It repeats an own block, so that no other sequence's numbers are read.
        """
        used = self.blocks[: self.num_blocks(block_size)]
        return [*used, *[self.blocks[0]] * (width - len(used))]


@dataclass(frozen=True, slots=True)
class _Group:
    """Spans that share one call of attention.

    They have equal length and contexts of similar length.
    """

    rows_BL: Tensor  # rows of the batch with the new tokens
    attend: Callable[[Tensor, Tensor], Tensor]  # queries [B, L, H, E] and a layer of the cache to outputs [B, L, H, E]


def tiles_of(spans: Sequence[CacheSpan], num_tokens: int) -> list[list[int]]:
    """Return tiles of at most `num_tokens` for `ChunkAttention`."""
    rows = accumulate((span.length for span in spans), initial=0)
    return [
        [index, row + first, span.start + first, min(num_tokens, span.length - first)]
        for index, (row, span) in enumerate(zip(rows, spans, strict=False))
        for first in range(0, span.length, num_tokens)
    ]


def bytes_per_block(config: LanguageConfig, block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one block over all layers."""
    return config.num_layers * 2 * block_size * config.num_kv_heads * config.head_dim * dtype.itemsize


class PagedCache:
    """Keys and values of all sequences.

    `kv` is [layers, 2 (key, value), blocks, block size, G, E].
    """

    def __init__(
        self,
        config: LanguageConfig,
        cache: CacheConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        kernels: KernelName = "auto",
    ) -> None:
        """Allocate the cache.

        Raises:
            ValueError: `kernels` cannot compute this model here.
        """
        self.config = cache
        self.device = device
        shape = (config.num_layers, 2, cache.num_blocks, cache.block_size, config.num_kv_heads, config.head_dim)
        # Written now, because the system promises more memory than it has. Better fail at start than in a request.
        self.kv = huge_pages.empty(shape, dtype, device).zero_()
        self._native = choose_attention(config, self.kv, kernels)
        # Flash attention takes a causal mask for a context of any length, but not an explicit mask.
        self.has_flash = dtype == torch.bfloat16 and device.type == "cuda" and _has_flash(device)
        self.decode_attention: DecodeAttention = GatheredAttention()  # of sequences with one new token
        self.chunk_attention: ChunkAttention | None = None  # of all others that are short. None leaves them to torch.
        self._num_heads = config.num_heads

    def choose_attention(self, name: AttentionName) -> None:
        """Choose the attention by the setting `--decode-attention`.

        Raises:
            ValueError: the named kind cannot run here.
        """
        self.decode_attention = choose_decode_attention(name, self.kv, self._num_heads)
        self.chunk_attention = choose_chunk_attention(self.decode_attention, self.kv, self._num_heads)

    def clear(self, blocks: Sequence[int]) -> None:
        """Fill `blocks` with zeros after they changed owner.

        Attention reads positions past the end of a sequence with weight 0, but 0 times a NaN is a NaN. So a NaN of the
        earlier owner must not stay. The native kernels read nothing past the end and need no zeros.
        """
        if blocks and self._native is None:
            self.kv.index_fill_(2, torch.tensor(blocks, device=self.device), 0)

    def attend(self, spans: Sequence[CacheSpan]) -> Attend:
        """Return attention for one forward pass.

        The batch consists of the new tokens of `spans`, laid end to end.

        Each call first stores the keys and values of the new tokens of a layer. Then each token attends to its own
        sequence, up to itself. Nothing else of the cache changes.
        """
        if self._native is not None:
            return self._attend_natively(self._native, spans)
        slots = [slot for span in spans for slot in span.slots(self.config.block_size)]
        slots_T = torch.tensor(slots, device=self.device)
        is_short = [self.chunk_attention is not None and 1 < span.length <= _SHORT for span in spans]
        groups = self._groups(spans, is_short)
        attend_short = self._attend_chunks(spans, is_short)

        def attend(q_THE: Tensor, kv: Tensor) -> Tensor:
            out_THE = torch.empty_like(q_THE) if attend_short is None else attend_short(q_THE, kv)
            for group in groups:
                out_THE[group.rows_BL] = group.attend(q_THE[group.rows_BL], kv)
            return out_THE

        return PagedAttend(self.kv, slots_T, attend)

    def _attend_natively(self, attention: NativeAttention, spans: Sequence[CacheSpan]) -> Attend:
        spans_S4, tables = array("i"), array("i")
        row = 0
        for span in spans:
            spans_S4.extend((row, span.start, span.length, len(tables)))
            tables.extend(span.blocks)
            row += span.length
        return attention.plan(spans_S4, tables)

    def _attend_chunks(self, spans: Sequence[CacheSpan], is_short: Sequence[bool]) -> AttendDecoded | None:
        """Return attention of the short chunks, if there are any."""
        if self.chunk_attention is None or not any(is_short):
            return None
        size = self.config.block_size
        width = max(span.num_blocks(size) for span in spans)
        tables_NM = torch.tensor([span.table(size, width) for span in spans], device=self.device)
        tiles = tiles_of(spans, self.chunk_attention.num_tokens)
        tiles_I4 = torch.tensor([tile for tile in tiles if is_short[tile[0]]], device=self.device)
        return self.chunk_attention.plan(tables_NM, tiles_I4)

    def _groups(self, spans: Sequence[CacheSpan], is_short: Sequence[bool]) -> list[_Group]:
        """Group the other spans, by equal length and similar context.

        Contexts of a group differ by less than a factor of two.

        So decoding sequences of similar length share a call, and padding never more than doubles a context.
        """
        members: defaultdict[tuple[int, int, int], list[tuple[int, CacheSpan]]] = defaultdict(list)
        row = 0
        for span, short in zip(spans, is_short, strict=True):
            alone = row if self.has_flash and span.length > 1 else -1
            if not short:
                members[span.length, span.num_blocks(self.config.block_size).bit_length(), alone].append((row, span))
            row += span.length
        return [self._group(length, group) for (length, _, _), group in members.items()]

    def _group(self, length: int, members: list[tuple[int, CacheSpan]]) -> _Group:
        size = self.config.block_size
        width = max(span.num_blocks(size) for _, span in members)
        steps_L = torch.arange(length, device=self.device)
        rows_B1 = torch.tensor([[row] for row, _ in members], device=self.device)
        starts_B = torch.tensor([span.start for _, span in members], device=self.device)
        blocks_BM = torch.tensor([span.table(size, width) for _, span in members], device=self.device)
        if length == 1:
            attend = _attend_one(self.decode_attention, blocks_BM, starts_B + 1)
        elif self.has_flash:
            attend = _attend_causally(blocks_BM, members[0][1].start + length)
        else:
            attend = _attend_masked(blocks_BM, starts_B[:, None] + steps_L, size, self.kv.dtype)
        return _Group(rows_B1 + steps_L, attend)


def _attend_one(attention: DecodeAttention, blocks_BM: Tensor, lengths_B: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return attention of sequences with one new token."""
    attend_decoded = attention.plan(blocks_BM, lengths_B)
    return lambda q_B1HE, kv: attend_decoded(q_B1HE[:, 0], kv)[:, None]


def _attend_causally(blocks_1M: Tensor, num_cached: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return attention of one sequence.

    Its new tokens are the last of `num_cached`.
    """

    def attend(q_1LHE: Tensor, kv: Tensor) -> Tensor:
        k_1GCE, v_1GCE = kv[:, blocks_1M].flatten(2, 3)[:, :, :num_cached].transpose(2, 3)
        mask = causal_lower_right(q_1LHE.shape[1], num_cached)
        return functional.scaled_dot_product_attention(
            q_1LHE.transpose(1, 2), k_1GCE, v_1GCE, attn_mask=mask, enable_gqa=True
        ).transpose(1, 2)

    return attend


def _attend_masked(
    blocks_BM: Tensor, positions_BL: Tensor, block_size: int, dtype: torch.dtype
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return attention of any chunks of equal length."""
    positions_C = torch.arange(blocks_BM.shape[1] * block_size, device=blocks_BM.device)
    hidden_B1LC = positions_C > positions_BL[:, None, :, None]
    mask_B1LC = torch.zeros(hidden_B1LC.shape, dtype=dtype, device=blocks_BM.device)
    mask_B1LC.masked_fill_(hidden_B1LC, float("-inf"))

    def attend(q_BLHE: Tensor, kv: Tensor) -> Tensor:
        k_BGCE, v_BGCE = kv[:, blocks_BM].flatten(2, 3).transpose(2, 3)
        return functional.scaled_dot_product_attention(
            q_BLHE.transpose(1, 2), k_BGCE, v_BGCE, attn_mask=mask_B1LC, enable_gqa=True
        ).transpose(1, 2)

    return attend


def _has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and newer
