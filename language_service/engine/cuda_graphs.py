"""Decoding steps of fixed shapes, recorded once and replayed.

On a GPU, starting the hundreds of kernels of a step one by one takes longer than running them for a few tokens. A
recorded step starts with a single call, but works on the memory and the shapes it was recorded with. So a batch is
copied to where the step looks for it, and filled up to the next shape there is.
"""

from collections.abc import Callable, Sequence

import structlog
import torch
from torch import Tensor
from torch.nn import functional

from language_service.engine.kv_cache import PagedCache, Span
from language_service.engine.serving import ServingDecoder

# N sequences of one token each, M blocks of each, C = M * block size cached positions, H query heads, G key-value
# heads, R = H / G of a group, E head dim, V vocabulary

Run = Callable[[], Tensor]  # computes what lies in its inputs' place; returns logits [N, V]

_log = structlog.get_logger()

_MOST_PADDING = 4  # filling up to powers of two makes sequences of one length less than four times as much


class RecordedSteps:
    """Decoding steps of one decoder and cache, each shape recorded when it is first needed."""

    def __init__(self, decoder: ServingDecoder, cache: PagedCache, record: Callable[[Run], Run]) -> None:
        """Let `record` return what does the same as the step it is given, faster; `CudaRecorder` does on a GPU."""
        self._decoder, self._cache, self._record = decoder, cache, record
        self._steps: dict[tuple[int, int], tuple[_Step, Run]] = {}
        self._works = True

    def forward(self, token_ids: Sequence[int], spans: Sequence[Span]) -> Tensor | None:
        """Compute one token of each sequence and store its keys and values; return logits [sequences, V].

        The next call overwrites them. None, and nothing done, where contexts differ so much in length that computing
        them apart is better; and always, once a step could not be recorded, which the log says.
        """
        size = self._cache.config.block_size
        num_blocks = [span.num_blocks(size) for span in spans]
        num_rows, width = _power_above(len(spans)), _power_above(max(num_blocks))
        if not self._works or num_rows * width > _MOST_PADDING * sum(num_blocks):
            return None
        found = self._steps.get((num_rows, width))
        step = _Step(self._decoder, self._cache, num_rows, width) if found is None else found[0]
        step.fill(token_ids, spans)
        try:
            run = self._record(step.run) if found is None else found[1]
        except RuntimeError:  # torch's for no memory left and for what cannot be recorded; slower is better than not
            _log.exception("decoding steps cannot be recorded and run piece by piece", rows=num_rows, blocks=width)
            self._works = False
            return None
        self._steps[num_rows, width] = step, run
        return run()[: len(spans)]


class _Step:
    """A step of `num_rows` sequences of at most `width` blocks, in memory that stays where it is."""

    def __init__(self, decoder: ServingDecoder, cache: PagedCache, num_rows: int, width: int) -> None:
        self._decoder, self._cache = decoder, cache
        device, num_slots = cache.device, width * cache.config.block_size
        self._inputs_3N = torch.zeros(3, num_rows, dtype=torch.long, device=device)
        self._tables_NM = torch.zeros(num_rows, width, dtype=torch.long, device=device)
        self._rows_N = torch.arange(num_rows, device=device)
        self._places_C = torch.arange(num_slots, device=device)

    def fill(self, token_ids: Sequence[int], spans: Sequence[Span]) -> None:
        """Put a batch in place, filled up with copies of its first sequence: they store the same in the same slot."""
        size = self._cache.config.block_size
        num_rows, width = self._tables_NM.shape
        padding = num_rows - len(spans)
        rows = [*spans, *[spans[0]] * padding]
        positions = [span.start for span in rows]
        slots = [slot for span in rows for slot in span.slots(size)]
        self._inputs_3N.copy_(torch.tensor([[*token_ids, *[token_ids[0]] * padding], positions, slots]))
        self._tables_NM.copy_(torch.tensor([span.table(size, width) for span in rows]))

    def run(self) -> Tensor:
        """Compute the batch in place; nothing here may depend on it but through tensors."""
        tokens_N, positions_N, slots_N = self._inputs_3N
        hidden_NC = self._places_C > positions_N[:, None]
        mask_N11C = torch.zeros(hidden_NC.shape, dtype=self._cache.kv.dtype, device=self._cache.device)
        mask_N11C = mask_N11C.masked_fill(hidden_NC, float("-inf"))[:, None, None]

        def attend(layer: int, q_NHE: Tensor, k_NGE: Tensor, v_NGE: Tensor) -> Tensor:
            kv = self._cache.kv[layer]
            kv.flatten(1, 2).index_copy_(1, slots_N, torch.stack([k_NGE, v_NGE]))
            k_NGCE, v_NGCE = kv[:, self._tables_NM].flatten(2, 3).transpose(2, 3)
            # With one token a sequence, the heads of a group are the rows of one query: no key is copied for each.
            q_NGRE = q_NHE.view(len(q_NHE), k_NGE.shape[1], -1, k_NGE.shape[2])
            return functional.scaled_dot_product_attention(q_NGRE, k_NGCE, v_NGCE, attn_mask=mask_N11C).flatten(1, 2)

        return self._decoder.forward(self._decoder.embed(tokens_N), positions_N, attend, self._rows_N)


class CudaRecorder:
    """Records steps as CUDA graphs. They share their working memory, as no two run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Return the replay of `run`, which it runs once: what lies in its inputs' place is computed twice."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                run()  # chooses kernels and takes their memory, which cannot be recorded
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Another model may be loading on a thread of its own, and must not spoil the recording.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits_NV = run()

        def replay() -> Tensor:
            graph.replay()
            return logits_NV

        return replay


def _power_above(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
