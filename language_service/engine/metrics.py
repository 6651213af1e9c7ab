"""Count and time the steps of an engine."""

from collections.abc import Callable, Sequence

from prometheus_client import Counter, Gauge, Histogram

from language_service.engine.interface import EngineStats
from language_service.scheduling import Batch

RUNNING = Gauge("tandem_language_running", "Sequences that have cache blocks.", ["tag"])
WAITING = Gauge("tandem_language_waiting", "Sequences that wait for blocks, a slot or their prompt.", ["tag"])
USED_BLOCKS = Gauge("tandem_language_kv_blocks_used", "Blocks of the KV cache in use.", ["tag"])
KERNELS = Gauge("tandem_language_kernels", "1 for the kernels that compute the model.", ["tag", "kernels"])
BLOCKS = Gauge("tandem_language_kv_blocks", "Blocks of the KV cache.", ["tag"])
EVICTABLE_BLOCKS = Gauge(
    "tandem_language_kv_blocks_kept", "Blocks of the KV cache that are not in use but can be reused.", ["tag"]
)
COMPUTED_TOKENS = Counter(
    "tandem_language_tokens",
    "Tokens by kind: prompt (computed in prefill), answer (computed in decode), found (prefix cache hits).",
    ["tag", "kind"],
)
DRAFTS = Counter(
    "tandem_language_drafts",
    "Draft tokens by outcome: forced (by a constraint), and of the others right (accepted) or wrong (rejected).",
    ["tag", "outcome"],
)
PREEMPTIONS = Counter("tandem_language_preemptions", "Sequences preempted for others.", ["tag"])
STEP_SECONDS = Histogram(
    "tandem_language_step_seconds",
    "Duration of one step of the engine, seconds.",
    ["tag"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
STEP_TOKENS = Histogram(
    "tandem_language_step_tokens", "Tokens computed in one step.", ["tag"], buckets=[2**power for power in range(14)]
)
FAILED_STEPS = Counter("tandem_language_failed_steps", "Steps that failed.", ["tag"])


class EngineMetrics:
    """The metrics of one engine."""

    def __init__(self, tag: str, stats: Callable[[], EngineStats], kernels: str) -> None:
        """Register the gauges.

        Prometheus calls `stats` on each scrape, so they are never out of date.
        """
        self._tag, self._kernels = tag, kernels
        KERNELS.labels(tag, kernels).set(1)
        self._gauges = {
            RUNNING: lambda: stats().num_running,
            WAITING: lambda: stats().num_waiting,
            USED_BLOCKS: lambda: stats().num_used_blocks,
            EVICTABLE_BLOCKS: lambda: stats().num_evictable_blocks,
            BLOCKS: lambda: stats().num_blocks,
        }
        for gauge, read in self._gauges.items():
            gauge.labels(tag).set_function(read)
        # Show counters as 0 before they first count. An absent counter looks like a broken one.
        for counter in (PREEMPTIONS, FAILED_STEPS):
            counter.labels(tag)
        for kind in ("prompt", "answer", "found"):
            COMPUTED_TOKENS.labels(tag, kind)
        for outcome in ("forced", "right", "wrong"):
            DRAFTS.labels(tag, outcome)

    def step(self, batch: Batch, seconds: float, *, num_accepted: Sequence[int]) -> None:
        """Count a step.

        Args:
            batch: its work.
            seconds: its duration.
            num_accepted: drafts of each chunk that were accepted.
        """
        prompts = [chunk for chunk in batch.chunks if chunk.start < chunk.sequence.num_prompt]
        num_prompt = sum(len(chunk.token_ids) - chunk.num_drafts for chunk in prompts)
        num_tokens = sum(len(chunk.token_ids) for chunk in batch.chunks)
        STEP_SECONDS.labels(self._tag).observe(seconds)
        STEP_TOKENS.labels(self._tag).observe(num_tokens)
        PREEMPTIONS.labels(self._tag).inc(batch.num_preempted)
        COMPUTED_TOKENS.labels(self._tag, "found").inc(batch.num_cached_tokens)
        COMPUTED_TOKENS.labels(self._tag, "prompt").inc(num_prompt)
        COMPUTED_TOKENS.labels(self._tag, "answer").inc(num_tokens - num_prompt)
        # Summed up first: counting with a label takes as long as choosing a token.
        drafts = dict.fromkeys(("forced", "right", "wrong"), 0)
        for chunk, right in zip(batch.chunks, num_accepted, strict=True):
            drafts["forced" if chunk.is_forced else "right"] += right
            drafts["wrong"] += 0 if chunk.is_forced else chunk.num_drafts - right
        for outcome, count in drafts.items():
            DRAFTS.labels(self._tag, outcome).inc(count)

    def count(self, *, num_prompt: int, num_cached: int, num_answer: int) -> None:
        """Count the tokens of an answer.

        For an engine that does not report its steps.
        """
        COMPUTED_TOKENS.labels(self._tag, "prompt").inc(num_prompt)
        COMPUTED_TOKENS.labels(self._tag, "found").inc(num_cached)
        COMPUTED_TOKENS.labels(self._tag, "answer").inc(num_answer)

    def failed_step(self) -> None:
        """Count a step that failed."""
        FAILED_STEPS.labels(self._tag).inc()

    def close(self) -> None:
        """Remove the gauges of a closed engine. Its counters stay."""
        for gauge in self._gauges:
            gauge.remove(self._tag)
        KERNELS.remove(self._tag, self._kernels)
