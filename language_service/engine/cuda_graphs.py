"""Record decoding steps as CUDA graphs and replay them.

On a GPU, launching the hundreds of kernels of a step takes longer than running them for a few tokens. A recorded step
needs a single launch, but always uses the memory and shapes of its recording. So a batch is padded to the next recorded
shape and copied into the memory of that step.
"""

from collections.abc import Callable, Sequence

import structlog
import torch
from torch import Tensor

from chassis.cuda_recorder import Run
from language_service.engine.fixed_inputs import FixedInputs
from language_service.engine.kv_cache import CacheSpan, PagedCache
from language_service.engine.serving import ServingDecoder
from language_service.kernels import PagedAttend

# N sequences of one token each, V vocabulary

_log = structlog.get_logger()

_MAX_PADDING = 4  # padded blocks per real one. Sequences of equal length stay below it.


class RecordedSteps:
    """Decoding steps of one decoder and cache.

    Each shape is recorded when it is first needed.
    """

    def __init__(self, decoder: ServingDecoder, cache: PagedCache, record: Callable[[Run], Run]) -> None:
        """Use `record` to make steps faster.

        It returns an equivalent of a step, such as the replay of `CudaRecorder`.
        """
        self._decoder, self._cache, self._record = decoder, cache, record
        self._steps: dict[tuple[int, int], tuple[_Step, Run]] = {}
        self._works = True

    def forward(
        self, token_ids: Sequence[int], spans: Sequence[CacheSpan], positions: Sequence[int] | None = None
    ) -> Tensor | None:
        """Compute and cache one token of each sequence.

        Args:
            token_ids: one per sequence.
            spans: place of each token in the cache.
            positions: rotary position of each token. None uses its index.

        Returns:
            Logits [sequences, V], which the next call overwrites. None, and nothing is computed, if padding would cost
            too much, or if a step could not be recorded.
        """
        size = self._cache.config.block_size
        num_blocks = [span.num_blocks(size) for span in spans]
        num_rows, width = _power_above(len(spans)), _power_above(max(num_blocks))
        if not self._works or num_rows * width > _MAX_PADDING * sum(num_blocks):
            return None
        recorded = self._steps.get((num_rows, width))
        step = _Step(self._decoder, self._cache, num_rows, width) if recorded is None else recorded[0]
        step.fill(token_ids, spans, [span.start for span in spans] if positions is None else positions)
        try:
            run = self._record(step.run) if recorded is None else recorded[1]
        except RuntimeError:  # torch ran out of memory or cannot record an operation. Better slow than failing.
            _log.exception("cuda graphs disabled: recording failed", rows=num_rows, blocks=width)
            self._works = False
            return None
        self._steps[num_rows, width] = step, run
        return run()[: len(spans)]


class _Step:
    """A step of a fixed shape, in fixed memory."""

    def __init__(self, decoder: ServingDecoder, cache: PagedCache, num_rows: int, width: int) -> None:
        self._decoder, self._cache = decoder, cache
        shapes = dict.fromkeys(("tokens", "positions", "indices", "slots"), (num_rows,))
        self._inputs = FixedInputs({**shapes, "tables": (num_rows, width)}, cache.device)
        self._rows_N = torch.arange(num_rows, device=cache.device)

    def fill(self, token_ids: Sequence[int], spans: Sequence[CacheSpan], positions: Sequence[int]) -> None:
        """Copy a batch into the fixed memory.

        It is padded with copies of its first sequence.

        The copies store the same numbers in the same slot, which does no harm.
        """
        inputs, size, count = self._inputs, self._cache.config.block_size, len(spans)
        inputs["tokens"][:count] = token_ids
        inputs["positions"][:count] = positions
        inputs["indices"][:count] = [span.start for span in spans]
        inputs["slots"][:count] = [slot for span in spans for slot in span.slots(size)]
        for table, span in zip(inputs["tables"], spans, strict=False):
            span.fill_table(table, size)
        for name in ("tokens", "positions", "indices", "slots", "tables"):
            inputs[name][count:] = inputs[name][0]
        inputs.send()

    def run(self) -> Tensor:
        """Compute the batch in the fixed memory.

        A recording contains no Python code. So the result may depend on the batch through tensors only.
        """
        tensor = self._inputs.tensor
        attend = self._cache.decode_attention.plan(tensor("tables"), tensor("indices") + 1)
        return self._decoder.forward(
            self._decoder.embed(tensor("tokens")),
            tensor("positions"),
            PagedAttend(self._cache.kv, tensor("slots"), attend),
            self._rows_N,
        )


def _power_above(count: int) -> int:
    """Round `count` up to a power of two."""
    return 1 << (count - 1).bit_length()
