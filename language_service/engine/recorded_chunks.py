"""Record steps with prompt chunks as CUDA graphs and replay them.

Launching the kernels of a step with a short question takes longer than computing it. So such steps are recorded for a
few numbers of tokens, as decoding steps are in `cuda_graphs`. Padded tokens store nothing, and nobody reads their
outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from chassis.cuda_recorder import Run
from language_service.engine.fixed_inputs import FixedInputs
from language_service.engine.kv_cache import CacheSpan, PagedCache, tiles_of
from language_service.engine.serving import ServingDecoder
from language_service.kernels import ChunkAttention, PagedAttend

# T tokens, D model dim, V vocabulary, R wanted rows, N sequences, M blocks of each, I tiles

_log = structlog.get_logger()

_SIZES = (16, 32, 64, 128, 256, 512)  # tokens of the recorded steps
_MAX_SPANS = 64  # sequences of a step
_MAX_ERROR = 0.1  # of the norm. Rounding to bfloat16 in many layers makes errors near 0.02, wrong numbers make 1.
_MAX_CONTEXT = 4096  # tokens of a sequence. One program reads them all, which for more takes longer than launching.


@dataclass(frozen=True, slots=True)
class ChunkBatch:
    """The new tokens of some sequences, laid end to end."""

    embeddings_TD: Tensor
    positions: Sequence[Sequence[int]]  # rotary, in one part or in three
    spans: Sequence[CacheSpan]  # places in the cache
    sampled_rows: Sequence[int]  # rows whose logits are wanted, ascending


class RecordedChunks:
    """Recorded steps of short chunks and decoding tokens.

    Of one decoder and cache. Each size is recorded when it is first needed.
    """

    def __init__(self, decoder: ServingDecoder, cache: PagedCache, record: Callable[[Run], Run]) -> None:
        """Use `record` to make steps faster, as `RecordedSteps` does."""
        self._decoder, self._cache, self._record = decoder, cache, record
        self._steps: dict[int, tuple[_ChunkStep, Run]] = {}
        self._works = decoder.kernels.skips_negative_slots

    def takes(self, batch: ChunkBatch) -> bool:
        """Return whether `forward` can compute a batch."""
        return (
            self._works
            and self._cache.chunk_attention is not None
            and max(len(batch.spans), len(batch.sampled_rows)) <= _MAX_SPANS
            and len(batch.embeddings_TD) <= _SIZES[-1]
            and max(span.start + span.length for span in batch.spans) <= _MAX_CONTEXT
        )

    def forward(self, batch: ChunkBatch, ordinary: Callable[[], Tensor]) -> Tensor:
        """Compute and cache the tokens of a batch.

        A new recording is first compared with the ordinary step. If they differ, no step is replayed any more.

        Args:
            batch: that `takes` accepts.
            ordinary: computes and caches the same without a recording.

        Returns:
            The wanted logits [R, V], which the next call may overwrite.
        """
        num_tokens = next(size for size in _SIZES if size >= len(batch.embeddings_TD))
        if num_tokens not in self._steps:
            return self._record_step(num_tokens, batch, ordinary)
        step, run = self._steps[num_tokens]
        step.fill(batch)
        return step.select(run(), batch.sampled_rows)

    def _record_step(self, num_tokens: int, batch: ChunkBatch, ordinary: Callable[[], Tensor]) -> Tensor:
        """Record a step, and return the ordinary one's logits.

        It is kept only if it gives the same.
        """
        if not batch.sampled_rows:
            return ordinary()  # there is nothing to compare, so a later step is recorded
        attention = self._cache.chunk_attention
        assert attention is not None
        try:
            step = _ChunkStep(self._decoder, self._cache, attention, num_tokens)
            step.fill(batch)
            run = self._record(step.run)
            found_RV = step.select(run(), batch.sampled_rows).float()
        except RuntimeError:  # torch ran out of memory or cannot record an operation. Better slow than failing.
            _log.exception("cuda graphs of chunks disabled: recording failed", tokens=num_tokens)
            self._works = False
            return ordinary()
        expected_RV = ordinary()
        error = float((found_RV - expected_RV.float()).norm() / expected_RV.float().norm())
        if error < _MAX_ERROR:
            self._steps[num_tokens] = step, run
        else:  # also if it is not a number
            _log.error("cuda graphs of chunks disabled: their numbers differ", tokens=num_tokens, error=error)
            self._works = False
        return expected_RV


class _ChunkStep:
    """A step of a fixed size, in fixed memory."""

    def __init__(self, decoder: ServingDecoder, cache: PagedCache, attention: ChunkAttention, num_tokens: int) -> None:
        self._decoder, self._cache, self._attention = decoder, cache, attention
        device, config = cache.device, decoder.config
        self._embeddings_TD = torch.zeros(num_tokens, config.width, dtype=decoder.dtype, device=device)
        self._num_parts = 1 if config.mrope_section is None else 3
        # With few tokens all rows are wanted, so that none has to be chosen within the recording.
        self._chooses = num_tokens > _MAX_SPANS
        shapes = {
            "positions": (self._num_parts, num_tokens),
            "slots": (num_tokens,),
            "rows": (_MAX_SPANS if self._chooses else num_tokens,),
            "tables": (_MAX_SPANS, -(-_MAX_CONTEXT // cache.config.block_size)),
            "tiles": (-(-num_tokens // attention.num_tokens) + min(num_tokens, _MAX_SPANS), 4),
        }
        self._inputs = FixedInputs(shapes, device)
        if not self._chooses:
            self._inputs["rows"][:] = range(num_tokens)

    def fill(self, batch: ChunkBatch) -> None:
        """Copy a batch into the fixed memory."""
        inputs, size, num_tokens = self._inputs, self._cache.config.block_size, len(batch.embeddings_TD)
        self._embeddings_TD[:num_tokens] = batch.embeddings_TD
        inputs["positions"][:, :num_tokens] = batch.positions  # one part stands for three equal ones
        inputs["slots"][:num_tokens] = [slot for span in batch.spans for slot in span.slots(size)]
        inputs["slots"][num_tokens:] = -1
        tiles = tiles_of(batch.spans, self._attention.num_tokens)
        inputs["tiles"][: len(tiles)] = tiles
        inputs["tiles"][len(tiles) :] = 0
        for table, span in zip(inputs["tables"], batch.spans, strict=False):
            span.fill_table(table, size)
        if self._chooses:
            inputs["rows"][: len(batch.sampled_rows)] = batch.sampled_rows
            inputs["rows"][len(batch.sampled_rows) :] = num_tokens - 1
        inputs.send()

    def run(self) -> Tensor:
        """Compute the batch in the fixed memory."""
        inputs, positions = self._inputs, self._inputs.tensor("positions")
        attend = self._attention.plan(inputs.tensor("tables"), inputs.tensor("tiles"))
        return self._decoder.forward(
            self._embeddings_TD.clone(),  # layers may add to it in place, and a recording runs more than once
            positions[0] if self._num_parts == 1 else positions,
            PagedAttend(self._cache.kv, inputs.tensor("slots"), attend),
            inputs.tensor("rows"),
        )

    def select(self, logits: Tensor, sampled_rows: Sequence[int]) -> Tensor:
        """Return the logits of the wanted rows."""
        if self._chooses:
            return logits[: len(sampled_rows)]
        return logits[torch.tensor(sampled_rows, dtype=torch.long, device=logits.device)]
