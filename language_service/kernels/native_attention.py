"""Attention that reads blocks of the cache in place."""

import ctypes
from array import array
from dataclasses import dataclass

import torch
from torch import Tensor

from language_service.kernels.library import NativeLibrary

# Letters as in `interface`, and G key-value heads, S spans, L layers


class NativeAttention:
    """Attention over one cache.

    `kv` is [L, 2 (key, value), blocks, block size, G, E].
    """

    def __init__(self, kv: Tensor, library: NativeLibrary) -> None:
        self.attention = library.attention
        self.kv = kv
        pointers = ctypes.c_void_p * len(kv)
        self.keys_L = pointers(*(layer[0].data_ptr() for layer in kv))
        self.values_L = pointers(*(layer[1].data_ptr() for layer in kv))

    def plan(self, spans_S4: "array[int]", tables: "array[int]") -> "NativeAttend":
        """Return attention for one forward pass.

        Args:
            spans_S4: four numbers per sequence. Its first row in the batch, the position of that row, its length, and
                the index in `tables` where its blocks start.
            tables: the blocks of all sequences, end to end.
        """
        return NativeAttend(self, spans_S4, tables)


@dataclass(frozen=True, slots=True)
class NativeAttend:
    """Attention for one forward pass.

    Called layer by layer, or read by `NativeLayers`, which computes all layers in one call.
    """

    cache: NativeAttention
    spans_S4: "array[int]"
    tables: "array[int]"

    def __call__(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        """Store new keys and values, return attention [T, H, E]."""
        block_size, kv_heads, size = self.cache.kv.shape[-3:]
        out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype)
        self.cache.attention(
            q_THE.data_ptr(),
            k_TGE.data_ptr(),
            v_TGE.data_ptr(),
            self.cache.keys_L[layer],
            self.cache.values_L[layer],
            self.spans_S4.buffer_info()[0],
            self.tables.buffer_info()[0],
            out_THE.data_ptr(),
            q_THE.stride(0),  # of all three, which are views of one tensor
            len(self.spans_S4) // 4,
            q_THE.shape[1],
            kv_heads,
            size,
            block_size,
            torch.get_num_threads(),
        )
        return out_THE
