"""Compare the means of two releases' answers, at every look.

Two numbers of an answer are bounded by cutting them off: the logarithm of its length, and its surprise, the mean
negative log-probability of its tokens. Each is kept as a count in one of 64 buckets and judged as a value in [0, 1].

The test bets twice. One bettor bets that the canary's mean is above m + increase, the other that stable's is below m.
Each stakes fixed shares of its capital, mixed as in `paired`. If the canary's mean is at most stable's plus the
increase, the product of both capitals is fair or worse at m, stable's true mean. That is unknown, so the smallest
product over all m counts. By Ville's inequality (1939) the chance that it ever reaches 1 / p is at most p. This is the
betting on bounded means of Waudby-Smith and Ramdas (JRSS B 86, 2024), for two samples as in Shekhar and Ramdas (IEEE
Trans. Inf. Theory 70, 2024). It needs no normal distribution, and looks cost no allowance.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

Measure = Literal["length", "surprise"]
Buckets = Mapping[int, int]  # counts by bucket
Values = Sequence[tuple[float, float]]  # values in [0, 1], with their counts

_NUM_BUCKETS = 64
_MOST_DOUBLINGS = 13  # of the tokens of an answer: 8192
_MOST_NATS = 4.0  # of surprise
# Shares of the most that can be staked. Their squares are evenly spaced, because small stakes suit small effects.
_SHARES = tuple((number / 12) ** 2 for number in range(1, 13))
# Where stable's answers are never disliked, only the whole capital at stake shows it fast. So it has a larger part.
_LOG_WEIGHTS = tuple(math.log(weight / 15) for weight in (*(1,) * 11, 4))
_NUM_SECTIONS = 30  # of the golden section search: precise to a millionth
_GOLDEN = (math.sqrt(5) - 1) / 2


def length_bucket(num_tokens: int) -> int:
    """Return the bucket of an answer's length."""
    return _bucket(math.log2(max(1, num_tokens)) / _MOST_DOUBLINGS)


def surprise_bucket(mean_logprob: float) -> int:
    """Return the bucket of an answer's surprise.

    The buckets are finest near 0, where most answers are. A number that is not finite is the largest surprise.
    """
    nats = -mean_logprob if math.isfinite(mean_logprob) else _MOST_NATS
    return _bucket(math.sqrt(max(0.0, nats) / _MOST_NATS))


def mean_length(lengths: Buckets) -> float | None:
    """Return the geometric mean of lengths, tokens, or None."""
    mean = _mean(values_of("length", lengths))
    return None if mean is None else float(2 ** (mean * _MOST_DOUBLINGS))


def mean_logprob(surprises: Buckets) -> float | None:
    """Return the mean log-probability of a token, or None."""
    mean = _mean(values_of("surprise", surprises))
    return None if mean is None else -mean * _MOST_NATS


def values_of(measure: Measure, buckets: Buckets) -> Values:
    """Return values in (0, 1) with their counts."""
    middles = [((bucket + 0.5) / _NUM_BUCKETS, count) for bucket, count in sorted(buckets.items()) if count > 0]
    return middles if measure == "length" else [(middle**2, count) for middle, count in middles]


def length_increase(ratio: float) -> float:
    """Return the increase of values for a ratio of lengths."""
    return math.log2(ratio) / _MOST_DOUBLINGS


def surprise_increase(nats: float) -> float:
    """Return the increase of values for one of surprises."""
    return nats / _MOST_NATS


def p_mean_above(stable: Values, canary: Values, increase: float) -> float:
    """Return a p-value for a mean that is too high.

    It tests the hypothesis 'the canary's mean is at most stable's plus `increase`', and holds at every look.
    """
    return math.exp(min(0.0, -log_capital_above(stable, canary, increase)))


def p_mean_below(stable: Values, canary: Values, increase: float) -> float:
    """Return a p-value for a mean that is low enough.

    It tests the hypothesis 'the canary's mean is at least stable's plus `increase`'.
    """
    return math.exp(min(0.0, -log_capital_below(stable, canary, increase)))


def log_capital_above(stable: Values, canary: Values, increase: float, *, needed: float = -math.inf) -> float:
    """Return the logarithm of the capital behind `p_mean_above`.

    Averages of capitals are capitals too. It is exact if it is at least `needed`. A smaller one is found faster.
    """
    below = _complements(stable)
    lowest, highest = max(0.0, -increase), min(1.0, 1.0 - increase)
    if lowest >= highest:
        return 0.0

    def log_product(mean: float) -> float:
        return _log_capital(canary, mean + increase) + _log_capital(below, 1 - mean)

    at_stable = log_product(min(max(_mean(stable) or 0.0, lowest), highest))
    return at_stable if at_stable < needed else _minimum(log_product, lowest, highest, needed)


def log_capital_below(stable: Values, canary: Values, increase: float) -> float:
    """Return the logarithm of the capital behind `p_mean_below`."""
    return log_capital_above(_complements(stable), _complements(canary), -increase)


def _bucket(value: float) -> int:
    return min(_NUM_BUCKETS - 1, int(value * _NUM_BUCKETS))


def _mean(values: Values) -> float | None:
    number = sum(count for _, count in values)
    return sum(value * count for value, count in values) / number if number else None


def _complements(values: Values) -> Values:
    return [(1 - value, count) for value, count in values]


def _log_capital(values: Values, mean: float) -> float:
    """Return the logarithm of a bettor's capital.

    It bets that the mean is above `mean`. The logarithm is a convex function of `mean`.
    """
    if mean <= 0:
        return math.inf if values else 0.0
    logarithms = list(_LOG_WEIGHTS)
    for value, count in values:
        gain = value / mean - 1
        for number, share in enumerate(_SHARES):
            logarithms[number] += count * math.log1p(share * gain) if share * gain > -1 else -math.inf
    highest = max(logarithms)
    return highest + math.log(sum(math.exp(one - highest) for one in logarithms))


def _minimum(function: Callable[[float], float], low: float, high: float, needed: float) -> float:
    """Return the minimum of a convex function, by golden section.

    Or any value below `needed`.
    """
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(_NUM_SECTIONS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
        if min(at_left, at_right) < needed:
            break
    return min(at_left, at_right)
