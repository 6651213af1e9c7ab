"""What the metrics of language services say of their engines: one reading, and what happened between two."""

import http.client
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_PREFIX = "tandem_language_"
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The engines of one process at one moment."""

    at_s: float
    values: Mapping[str, Mapping[str, float]]  # by model tag, then by sample: 'running', 'tokens_total/prompt'


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """One engine over the last interval."""

    tag: str
    running: int  # sequences that hold cache blocks
    waiting: int
    used: float  # parts of the KV cache's blocks: held by sequences,
    kept: float  # and held by none, but known by what they hold
    prompt_rate: float  # tokens of prompts computed, each second
    answer_rate: float  # tokens of answers computed, each second
    found: float  # part of the prompts' tokens that was computed before; NaN where there was no prompt
    preemptions: int  # since the service started
    step_tokens: float  # mean of one step; NaN where there was none, as the two below
    step_ms: float
    right: float  # part of the tokens guessed ahead that was right


def read(url: str) -> Reading:
    """Read the metrics of a language service.

    Raises:
        OSError: nobody answers there.
        ValueError: what answers are no metrics.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as page:
            text = page.read().decode()
    except http.client.HTTPException as error:  # what answers speaks another protocol
        raise ValueError("no metrics over HTTP") from error
    return parse(text, at_s=time.monotonic())


def parse(text: str, *, at_s: float) -> Reading:
    """Return the reading that a page of metrics, taken at `at_s`, is."""
    values: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(_PREFIX) and "tag" in sample.labels:
                others = [value for name, value in sorted(sample.labels.items()) if name != "tag"]
                name = "/".join([sample.name.removeprefix(_PREFIX), *others])
                values.setdefault(sample.labels["tag"], {})[name] = sample.value
    return Reading(at_s, values)


def pulses(before: Reading, after: Reading) -> list[Pulse]:
    """Return what happened between two readings, for each engine that is there now."""
    seconds = after.at_s - before.at_s
    return [
        _pulse(tag, _since(before.values.get(tag, {}), values), values, seconds)
        for tag, values in sorted(after.values.items())
        if "running" in values  # counters of a model outlive it
    ]


def _since(before: Mapping[str, float], after: Mapping[str, float]) -> Mapping[str, float]:
    """Return what counters count from: zero where the service started anew, which the one of its steps tells."""
    steps = "step_seconds_count"
    return before if before.get(steps, 0.0) <= after.get(steps, 0.0) else {}


def _pulse(tag: str, before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> Pulse:
    def more(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    blocks, prompt, found = after["kv_blocks"], more("tokens_total/prompt"), more("tokens_total/found")
    steps, right = more("step_seconds_count"), more("drafts_total/right")
    return Pulse(
        tag=tag,
        running=int(after["running"]),
        waiting=int(after["waiting"]),
        used=_ratio(after["kv_blocks_used"], blocks),
        kept=_ratio(after["kv_blocks_kept"], blocks),
        prompt_rate=_ratio(prompt, seconds),
        answer_rate=_ratio(more("tokens_total/answer"), seconds),
        found=_ratio(found, prompt + found),
        preemptions=int(after.get("preemptions_total", 0)),
        step_tokens=_ratio(more("step_tokens_sum"), steps),
        step_ms=1000 * _ratio(more("step_seconds_sum"), steps),
        right=_ratio(right, right + more("drafts_total/wrong")),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
