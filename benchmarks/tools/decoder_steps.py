"""Time the decoder's steps alone, without an engine."""

import statistics
import time
from collections.abc import MutableMapping

import torch
from torch import Tensor

from checkpoint.families import EMBEDDING, LanguageConfig, decoder_layout
from checkpoint.stored_tensor import ELEMENT_BYTES
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache
from language_service.engine.serving import ServingDecoder
from language_service.kernels import largest

CONTEXT = 128  # tokens of each sequence before the first step
_BLOCK_SIZE = 16


def weight_bytes_per_step(config: LanguageConfig) -> int:
    """Return the bytes of weights that a step reads."""
    # Of an embedding that is no head, a step reads one row for each sequence.
    specs = [spec for spec in decoder_layout(config) if spec.name != EMBEDDING or config.tied_embeddings]
    return sum(spec.num_elements * ELEMENT_BYTES[spec.dtype or "bfloat16"] for spec in specs)


class SteppedDecoder:
    """A decoder in bfloat16 or fewer bits, and a cache."""

    def __init__(
        self, config: LanguageConfig, tensors: MutableMapping[str, Tensor], *, max_sequences: int, num_steps: int
    ) -> None:
        """Take over the tensors of a checkpoint.

        Args:
            config: of the decoder.
            tensors: by name. Empty afterwards.
            max_sequences: largest batch.
            num_steps: of each measurement.
        """
        self.weight_bytes_per_step = weight_bytes_per_step(config)
        self.num_steps = num_steps
        self._decoder = ServingDecoder(config, tensors)
        self._blocks = -(-(CONTEXT + num_steps) // _BLOCK_SIZE)
        cache = CacheConfig(num_blocks=max_sequences * self._blocks, block_size=_BLOCK_SIZE)
        self._cache = PagedCache(config, cache, dtype=torch.bfloat16, device=torch.device("cpu"))

    @torch.inference_mode()
    def rate(self, num_sequences: int) -> float:
        """Return tokens/s, by the median of the steps."""
        rows = torch.arange(num_sequences)
        tokens = rows + 10
        samples = []
        for position in range(CONTEXT, CONTEXT + self.num_steps):
            spans = [
                CacheSpan(position, 1, range(row * self._blocks, (row + 1) * self._blocks))
                for row in range(num_sequences)
            ]
            start_s = time.perf_counter()
            positions = torch.full((num_sequences,), position)
            attend = self._cache.attend(spans)
            logits = self._decoder.forward(self._decoder.embed(tokens), positions, attend, rows)
            tokens = largest(logits)[1]
            samples.append(time.perf_counter() - start_s)
        return num_sequences / statistics.median(samples)
