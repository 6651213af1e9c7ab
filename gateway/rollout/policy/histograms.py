"""Histograms of times in logarithmic buckets, 16 buckets per doubling.

A time is known to 2.2 %. Medians and ranks follow from the counts, and the histograms of several gateways add up
exactly. The idea is DDSketch (Masson, Rim and Lee, VLDB 2019).
"""

import math
from collections.abc import Mapping

Histogram = Mapping[int, float]  # counts by bucket. A count may be split between two buckets.

_BUCKETS_PER_DOUBLING = 16
_SHORTEST_S = 1e-6


def bucket_of(seconds: float) -> int:
    """Return the bucket of a time.

    Times below 1 µs share one bucket.
    """
    return math.floor(math.log2(max(seconds, _SHORTEST_S)) * _BUCKETS_PER_DOUBLING)


def seconds_of(bucket: int) -> float:
    """Return the middle of a bucket, seconds."""
    return float(2 ** ((bucket + 0.5) / _BUCKETS_PER_DOUBLING))


def median_s(histogram: Histogram) -> float | None:
    """Return the median, seconds, or None for an empty histogram."""
    return quantile_s(histogram, 0.5)


def quantile_s(histogram: Histogram, share: float) -> float | None:
    """Return a quantile of the times, seconds.

    None for an empty histogram.
    """
    wanted, below = sum(histogram.values()) * share, 0.0
    for bucket in sorted(histogram):
        below += histogram[bucket]
        if below >= wanted:
            return seconds_of(bucket)
    return None


def scaled(histogram: Histogram, factor: float) -> dict[int, float]:
    """Return the histogram of all times multiplied by `factor`.

    A scaled bucket rarely falls on another one, so its count is split between the two buckets it falls on. Rounding to
    one of them would turn a factor of 1.5 into 1.51. Many thousand requests can tell these apart.
    """
    whole, part = divmod(math.log2(factor) * _BUCKETS_PER_DOUBLING, 1)
    moved: dict[int, float] = {}
    for bucket, count in histogram.items():
        for target, share in ((bucket + int(whole), 1 - part), (bucket + int(whole) + 1, part)):
            moved[target] = moved.get(target, 0) + share * count
    return moved


def capped(histogram: Histogram, longest: int) -> dict[int, float]:
    """Move the counts of buckets above `longest` into it."""
    kept: dict[int, float] = {}
    for bucket, count in histogram.items():
        kept[min(bucket, longest)] = kept.get(min(bucket, longest), 0) + count
    return kept
