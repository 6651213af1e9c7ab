"""Metrics of the language service, by model tag."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from language_service.engine.interface import EngineStats
from language_service.scheduling import Batch

RUNNING = Gauge("tandem_language_running", "Sequences that hold cache blocks.", ["tag"])
WAITING = Gauge("tandem_language_waiting", "Sequences that wait for blocks, a place or their prompt.", ["tag"])
USED_BLOCKS = Gauge("tandem_language_kv_blocks_used", "Blocks of the KV cache in use.", ["tag"])
BLOCKS = Gauge("tandem_language_kv_blocks", "Blocks of the KV cache.", ["tag"])
KEPT_BLOCKS = Gauge("tandem_language_kv_blocks_kept", "Blocks nobody holds whose content can be found.", ["tag"])
COMPUTED_TOKENS = Counter(
    "tandem_language_tokens",
    "Tokens, by kind: prompt (computed in prefill), answer (in decode), found (of a prompt, computed before).",
    ["tag", "kind"],
)
DRAFTS = Counter("tandem_language_drafts", "Tokens of answers guessed ahead: right or wrong.", ["tag", "outcome"])
PREEMPTIONS = Counter("tandem_language_preemptions", "Sequences that gave back their blocks for others.", ["tag"])
STEP_SECONDS = Histogram(
    "tandem_language_step_seconds",
    "One step of the engine, seconds.",
    ["tag"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
STEP_TOKENS = Histogram(
    "tandem_language_step_tokens", "Tokens computed in one step.", ["tag"], buckets=[2**power for power in range(14)]
)
FAILED_STEPS = Counter("tandem_language_failed_steps", "Steps that ended in an error.", ["tag"])


class EngineMetrics:
    """The metrics of one engine."""

    def __init__(self, tag: str, stats: Callable[[], EngineStats]) -> None:
        """Let Prometheus ask for `stats`, so that a gauge is never out of date."""
        self._tag = tag
        self._gauges = {
            RUNNING: lambda: stats().num_running,
            WAITING: lambda: stats().num_waiting,
            USED_BLOCKS: lambda: stats().num_used_blocks,
            KEPT_BLOCKS: lambda: stats().num_kept_blocks,
            BLOCKS: lambda: stats().num_blocks,
        }
        for gauge, read in self._gauges.items():
            gauge.labels(tag).set_function(read)
        # Counters show as 0 before they first count: an absent one cannot be told from one that is not there at all.
        for counter in (PREEMPTIONS, FAILED_STEPS):
            counter.labels(tag)
        for kind in ("prompt", "answer", "found"):
            COMPUTED_TOKENS.labels(tag, kind)
        for outcome in ("right", "wrong"):
            DRAFTS.labels(tag, outcome)

    def step(self, batch: Batch, seconds: float, *, num_right: int) -> None:
        """Count a step that was computed in `seconds` and found `num_right` of its guesses right."""
        num_prompt = sum(len(chunk.token_ids) for chunk in batch.chunks if chunk.start < chunk.sequence.num_prompt)
        num_tokens = sum(len(chunk.token_ids) for chunk in batch.chunks)
        STEP_SECONDS.labels(self._tag).observe(seconds)
        STEP_TOKENS.labels(self._tag).observe(num_tokens)
        PREEMPTIONS.labels(self._tag).inc(batch.num_preempted)
        COMPUTED_TOKENS.labels(self._tag, "found").inc(batch.num_found)
        COMPUTED_TOKENS.labels(self._tag, "prompt").inc(num_prompt)
        COMPUTED_TOKENS.labels(self._tag, "answer").inc(num_tokens - num_prompt)
        DRAFTS.labels(self._tag, "right").inc(num_right)
        DRAFTS.labels(self._tag, "wrong").inc(sum(chunk.num_drafts for chunk in batch.chunks) - num_right)

    def failed_step(self) -> None:
        """Count a step that ended in an error."""
        FAILED_STEPS.labels(self._tag).inc()

    def close(self) -> None:
        """Let go of the engine; counters stay."""
        for gauge in self._gauges:
            gauge.remove(self._tag)
