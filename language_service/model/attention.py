"""Attention within one forward pass, without a cache."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

# T tokens, B sequences of L tokens, H query heads, G key-value heads, E head dim

# attend(layer, q_THE, k_TGE, v_TGE) -> out_THE. The decoder computes queries, keys and values of its tokens. The caller
# decides which positions they attend to: the paged cache in serving, the batch itself in training.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def causal_attend(num_sequences: int, length: int) -> Attend:
    """Return causal attention within sequences of equal length.

    The batch must consist of `num_sequences` sequences of `length` tokens, laid end to end. Differentiable, so training
    uses it. Keeps no state between calls.
    """

    def attend(_layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        q_BHLE, k_BGLE, v_BGLE = (
            x.view(num_sequences, length, *x.shape[1:]).transpose(1, 2) for x in (q_THE, k_TGE, v_TGE)
        )
        out_BHLE = functional.scaled_dot_product_attention(q_BHLE, k_BGLE, v_BGLE, is_causal=True, enable_gqa=True)
        return out_BHLE.transpose(1, 2).flatten(0, 1)

    return attend
