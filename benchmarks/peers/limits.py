"""The least time of a decoding step on a machine.

A step reads all weights and the cache, and multiplies each weight with each sequence. With perfect overlap it takes the
longer of both, each at the speed measured for it alone (the roofline of Williams, Waterman and Patterson, 2009).
"""

from dataclasses import dataclass

from benchmarks.peers.checkpoints import CACHE_BYTES_PER_TOKEN, SHAPE, WEIGHT_BYTES

_FLOP_PER_WEIGHT_BYTE = 1  # a multiplication and an addition for each weight of two bytes
# Products of queries with keys, and of the result with values.
_FLOP_PER_CACHED_TOKEN = 4 * SHAPE.num_layers * SHAPE.num_heads * SHAPE.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Speeds of a machine."""

    read_bandwidth: float  # bytes/s
    matmul_peak: float  # FLOP/s

    def reading_s(self, num_sequences: int, context: int) -> float:
        """Return the time that a step reads, seconds.

        Args:
            num_sequences: that decode at once.
            context: cached tokens of each.
        """
        return (WEIGHT_BYTES + num_sequences * context * CACHE_BYTES_PER_TOKEN) / self.read_bandwidth

    def arithmetic_s(self, num_sequences: int, context: int) -> float:
        """Return the time that a step multiplies, seconds."""
        per_sequence = WEIGHT_BYTES * _FLOP_PER_WEIGHT_BYTE + context * _FLOP_PER_CACHED_TOKEN
        return num_sequences * per_sequence / self.matmul_peak

    def step_s(self, num_sequences: int, context: int) -> float:
        """Return the larger of both, seconds."""
        return max(self.reading_s(num_sequences, context), self.arithmetic_s(num_sequences, context))
