"""Metrics of the language service, by model tag."""

from prometheus_client import Counter, Gauge, Histogram

RUNNING = Gauge("tandem_language_running", "Sequences that hold cache blocks.", ["tag"])
WAITING = Gauge("tandem_language_waiting", "Sequences that wait for blocks, a place or their prompt.", ["tag"])
USED_BLOCKS = Gauge("tandem_language_kv_blocks_used", "Blocks of the KV cache in use.", ["tag"])
BLOCKS = Gauge("tandem_language_kv_blocks", "Blocks of the KV cache.", ["tag"])
COMPUTED_TOKENS = Counter(
    "tandem_language_tokens", "Tokens computed, by kind: prompt (prefill) or answer (decode).", ["tag", "kind"]
)
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
