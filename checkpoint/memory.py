"""Count the memory of a model: weights, KV cache, visual tokens."""

import math
from collections.abc import Iterable
from typing import Literal

from checkpoint.families import LanguageConfig, ModelConfig, TensorSpec

Precision = Literal["bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")

COUNTING_RULE = (
    "int8: matrices of linear layers at 1 byte a weight and a bf16 scale per output row; int4: half a byte and a bf16 "
    "scale per 128 inputs of a row; embeddings, queries, norms and biases stay bf16"
)

_BF16_BYTES = 2
_INT4_GROUP = 128  # inputs of a row that share one scale


def weight_bytes(specs: Iterable[TensorSpec], precision: Precision) -> int:
    """Return the bytes of weights in memory, by `COUNTING_RULE`."""
    return sum(_tensor_bytes(spec, precision) for spec in specs)


def kv_bytes_per_token(config: LanguageConfig) -> int:
    """Return the bytes per token of a bf16 KV cache."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * _BF16_BYTES


def visual_token_bytes(config: ModelConfig) -> int:
    """Return the bytes of a bf16 visual token, all levels."""
    return config.token_width * _BF16_BYTES


def _tensor_bytes(spec: TensorSpec, precision: Precision) -> int:
    if precision == "bf16" or spec.kind not in ("linear", "output"):
        return spec.num_parameters * _BF16_BYTES
    outputs, inputs = spec.shape
    if precision == "int8":
        return outputs * (inputs + _BF16_BYTES)
    return outputs * (math.ceil(inputs / 2) + math.ceil(inputs / _INT4_GROUP) * _BF16_BYTES)
