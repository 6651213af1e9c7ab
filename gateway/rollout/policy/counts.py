"""What releases did in one step of a rollout, as sums: those of several gateways are added, and none grows with time.

Times are kept as counts by logarithmic bucket, 16 a doubling: a value is known to 2.2 %, ranks and medians follow from
the counts, and two gateways' counts add up exactly, which samples drawn by chance would not. (The idea of DDSketch:
Masson, Rim and Lee, VLDB 2019.)
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Arm = Literal["stable", "canary", "shadow"]
# Requests that may be compared with one another. A canary with a vision half of its own begins with a cold cache, so
# its first tokens are compared kind by kind; else its misses would count against it.
Kind = Literal["text", "images at hand", "images encoded"]
Timing = Literal["first_token", "inter_token"]
Number = Literal["requests", "errors", "overdue", "empty", "waiting", "compared", "equal", "dropped"]

# Sums by 'arm/number' and 'arm/timing/kind/bucket'; flat, as stores take them.
Counts = Counter[str]

_PER_DOUBLING = 16
_LEAST_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one request ended."""

    kind: Kind
    failed: bool
    empty: bool  # it ended well, but without a word
    first_token_s: float | None  # None where none came; of an overdue one, how long it has waited
    inter_token_s: float | None  # mean of this answer; None with fewer than two messages of tokens
    overdue: bool = False  # it has failed by hanging, and may not have ended yet


def counts_of(arm: Arm, outcome: Outcome) -> Counts:
    """Return one request as counts."""
    counts: Counts = Counter({f"{arm}/requests": 1})
    counts[f"{arm}/errors"] += outcome.failed
    counts[f"{arm}/overdue"] += outcome.overdue
    counts[f"{arm}/empty"] += outcome.empty
    if outcome.first_token_s is not None:
        counts[f"{arm}/first_token/{outcome.kind}/{bucket_of(outcome.first_token_s)}"] += 1
    if outcome.inter_token_s is not None:
        counts[f"{arm}/inter_token/{outcome.kind}/{bucket_of(outcome.inter_token_s)}"] += 1
    return counts


def number(counts: Counts, arm: Arm, name: Number) -> int:
    """Return one sum."""
    return counts[f"{arm}/{name}"]


def histograms(counts: Counts, arm: Arm, timing: Timing) -> dict[str, dict[int, int]]:
    """Return counts by bucket, by kind of request."""
    prefix = f"{arm}/{timing}/"
    found: dict[str, dict[int, int]] = {}
    for key, count in counts.items():
        if key.startswith(prefix):
            kind, _, bucket = key.removeprefix(prefix).partition("/")
            found.setdefault(kind, {})[int(bucket)] = count
    return found


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time."""
    return math.floor(math.log2(max(seconds, _LEAST_S)) * _PER_DOUBLING)


def seconds_of(bucket: int) -> float:
    """Return the middle of a bucket, seconds."""
    return float(2 ** ((bucket + 0.5) / _PER_DOUBLING))


def multiplied(histogram: Mapping[int, int], factor: float) -> dict[int, float]:
    """Return the histogram of all times multiplied by `factor`.

    A bucket seldom lands on another one; its count is shared between the two it lands on. Rounded to one of them, a
    factor of 1.5 would be one of 1.51, which many thousands of requests tell apart.
    """
    whole, part = divmod(math.log2(factor) * _PER_DOUBLING, 1)
    moved: dict[int, float] = {}
    for bucket, count in histogram.items():
        for target, share in ((bucket + int(whole), 1 - part), (bucket + int(whole) + 1, part)):
            moved[target] = moved.get(target, 0) + share * count
    return moved


def cut_off(histogram: Mapping[int, float], longest: int) -> dict[int, float]:
    """Return a histogram in which everything beyond the bucket `longest` is in it."""
    kept: dict[int, float] = {}
    for bucket, count in histogram.items():
        kept[min(bucket, longest)] = kept.get(min(bucket, longest), 0) + count
    return kept


def median_s(histogram: Mapping[int, int]) -> float | None:
    """Return the median time of a histogram, seconds; None where it is empty."""
    half, below = sum(histogram.values()) / 2, 0
    for bucket in sorted(histogram):
        below += histogram[bucket]
        if below >= half:
            return seconds_of(bucket)
    return None


def merged(by_kind: Mapping[str, Mapping[int, int]]) -> Counter[int]:
    """Return the histogram of all kinds together."""
    total: Counter[int] = Counter()
    for histogram in by_kind.values():
        total.update(histogram)
    return total
