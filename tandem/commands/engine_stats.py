"""Read engine statistics from the metrics of language services."""

import http.client
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_PREFIX = "tandem_language_"
_TIMEOUT_S = 2.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know the services


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The metrics of one process at one moment."""

    at_s: float  # monotonic clock
    values: Mapping[str, Mapping[str, float]]  # by model tag, then by sample: 'running', 'tokens_total/prompt'


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Statistics of one engine over one interval.

    A ratio is NaN if nothing was counted.
    """

    tag: str
    kernels: str  # empty from a service that does not report them
    running: int  # sequences that hold cache blocks
    waiting: int  # sequences in the queue
    kv_used: float  # part of the KV cache's blocks that sequences hold
    kv_evictable: float  # part of the blocks that only the prefix cache holds
    prompt_rate: float  # prompt tokens computed per second
    answer_rate: float  # answer tokens computed per second
    hit_rate: float  # part of the prompt tokens found in the prefix cache
    preemptions: int  # since the service started
    step_tokens: float  # mean tokens of one step
    step_ms: float  # mean time of one step
    draft_hit_rate: float  # part of the n-gram draft tokens that were right


def read_snapshot(url: str) -> Snapshot:
    """Read the metrics of a language service.

    Raises:
        OSError: nothing answers at `url`.
        ValueError: the answer is not a page of metrics.
    """
    try:
        with _DIRECT.open(url, timeout=_TIMEOUT_S) as page:
            text = page.read().decode()
    except http.client.HTTPException as error:  # the server speaks another protocol
        raise ValueError("no metrics over HTTP") from error
    return parse_snapshot(text, at_s=time.monotonic())


def parse_snapshot(text: str, *, at_s: float) -> Snapshot:
    """Parse a page of metrics that was read at `at_s`."""
    values: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(_PREFIX) and "tag" in sample.labels:
                others = [value for name, value in sorted(sample.labels.items()) if name != "tag"]
                name = "/".join([sample.name.removeprefix(_PREFIX), *others])
                values.setdefault(sample.labels["tag"], {})[name] = sample.value
    return Snapshot(at_s, values)


def engine_stats(before: Snapshot, after: Snapshot) -> list[EngineStats]:
    """Return the statistics of every current engine between two snapshots."""
    seconds = after.at_s - before.at_s
    return [
        _stats(tag, _baseline(before.values.get(tag, {}), values), values, seconds)
        for tag, values in sorted(after.values.items())
        if "running" in values  # the counters of an unloaded model remain
    ]


def _baseline(before: Mapping[str, float], after: Mapping[str, float]) -> Mapping[str, float]:
    """Return the counters to subtract: none if the service restarted."""
    steps = "step_seconds_count"  # it falls only in a restart
    return before if before.get(steps, 0.0) <= after.get(steps, 0.0) else {}


def _stats(tag: str, before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> EngineStats:
    def increase(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    blocks, computed, cached = after["kv_blocks"], increase("tokens_total/prompt"), increase("tokens_total/found")
    steps, right = increase("step_seconds_count"), increase("drafts_total/right")
    return EngineStats(
        tag=tag,
        kernels=next((name.removeprefix("kernels/") for name in after if name.startswith("kernels/")), ""),
        running=int(after["running"]),
        waiting=int(after["waiting"]),
        kv_used=_ratio(after["kv_blocks_used"], blocks),
        kv_evictable=_ratio(after["kv_blocks_kept"], blocks),
        prompt_rate=_ratio(computed, seconds),
        answer_rate=_ratio(increase("tokens_total/answer"), seconds),
        hit_rate=_ratio(cached, computed + cached),
        preemptions=int(after.get("preemptions_total", 0)),
        step_tokens=_ratio(increase("step_tokens_sum"), steps),
        step_ms=1000 * _ratio(increase("step_seconds_sum"), steps),
        draft_hit_rate=_ratio(right, right + increase("drafts_total/wrong")),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
