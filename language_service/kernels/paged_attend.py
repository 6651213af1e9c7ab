"""Attention of one forward pass over a paged cache."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# T tokens, L layers, P blocks of S positions, H query heads, G key-value heads, E head dim


@dataclass(frozen=True, slots=True)
class PagedAttend:
    """Stores keys and values of a layer, then attends.

    Called layer by layer, or read by layers that store keys and values themselves.
    """

    kv: Tensor  # the cache, [L, 2 (key, value), P, S, G, E]
    slots_T: Tensor  # block x S + offset of each token. Only kernels that store themselves skip negative ones.
    attend: Callable[[Tensor, Tensor], Tensor]  # queries [T, H, E] and a layer of the cache to outputs [T, H, E]

    def __call__(self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        """Store new keys and values, return attention [T, H, E]."""
        kv_2PSGE = self.kv[layer]
        kv_2PSGE.flatten(1, 2).index_copy_(1, self.slots_T, torch.stack([k_TGE, v_TGE]))
        return self.attend(q_THE, kv_2PSGE)
