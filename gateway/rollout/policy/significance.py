"""The tests behind the guard, as small exact formulas.

Rates: the binomial distribution itself (no normal approximation: rare errors are exactly where it is wrong), with the
limits of Clopper and Pearson (Biometrika 26, 1934) for stable's unknown rate, combined as Berger and Boos propose
(JASA 89, 1994). Times: the rank-sum test of Mann and Whitney (1947), kind by kind as van Elteren combines it (1960).
"""

import math
from collections.abc import Mapping, Sequence

# Of the level of a test of rates, what is spent on not knowing stable's own rate.
_NUISANCE_SHARE = 0.1
_BISECTIONS = 60  # halvings of [0, 1]: beyond what a float holds near the answers
_MAX_TERMS = 100_000  # of the continued fraction; it takes about the square root of the number of trials

Histogram = Mapping[int, float]  # counts by value; a count may be shared between two values


def p_rate_above(stable: tuple[int, int], canary: tuple[int, int], increase: float, level: float) -> float:
    """Return a p-value against 'the canary's rate is at most stable's plus `increase`'; valid at `level`.

    Args:
        stable: (events, trials) of the stable release.
        canary: those of the canary.
        increase: the difference of rates that is still fine.
        level: what the result will be compared with.
    """
    nuisance = level * _NUISANCE_SHARE
    highest = min(1.0, upper_limit(*stable, nuisance) + increase)
    return min(1.0, at_least(*canary, highest) + nuisance)


def p_rate_below(stable: tuple[int, int], canary: tuple[int, int], increase: float, level: float) -> float:
    """Return a p-value against 'the canary's rate is at least stable's plus `increase`'; valid at `level`."""
    nuisance = level * _NUISANCE_SHARE
    events, trials = stable
    lowest = min(1.0, 1 - upper_limit(trials - events, trials, nuisance) + increase)
    events, trials = canary
    return min(1.0, at_least(trials - events, trials, 1 - lowest) + nuisance)


def at_least(events: int, trials: int, rate: float) -> float:
    """Return the chance of `events` or more in `trials` independent ones of probability `rate`."""
    if events <= 0:
        return 1.0
    if events > trials or rate <= 0:
        return 0.0
    return 1.0 if rate >= 1 else _beta_share(events, trials - events + 1, rate)


def upper_limit(events: int, trials: int, level: float) -> float:
    """Return the highest rate at which as few as `events` in `trials` still have a chance of `level`."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if 1 - at_least(events + 1, trials, middle) > level:
            low = middle
        else:
            high = middle
    return high


def rank_sum_z(strata: Sequence[tuple[Histogram, Histogram]]) -> float:
    """Return how far the second of each pair lies above the first, in standard deviations of chance; 0 without pairs.

    Args:
        strata: (stable, canary) as counts by value; only values of one pair are compared with one another.
    """
    excess = variance = 0.0
    for stable, canary in strata:
        num_stable, num_canary = sum(stable.values()), sum(canary.values())
        total = num_stable + num_canary
        if not (num_stable and num_canary):
            continue
        weight = 1 / (total + 1)
        above = ties = seen = 0.0
        for value in sorted({*stable, *canary}):
            here, there = stable.get(value, 0), canary.get(value, 0)
            above += there * (seen + here / 2)
            seen += here
            ties += max(0.0, (here + there) ** 3 - (here + there))
        excess += weight * (above - num_stable * num_canary / 2)
        variance += weight**2 * num_stable * num_canary / 12 * (total + 1 - ties / (total * (total - 1)))
    return excess / math.sqrt(variance) if variance > 0 else 0.0


def p_above(z: float) -> float:
    """Return the chance of a standard normal value of `z` or more."""
    return math.erfc(z / math.sqrt(2)) / 2


def _beta_share(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), a binomial tail: P(X >= a) of a + b - 1 trials.

    By its continued fraction (DLMF 8.17.22), evaluated as Lentz does it, on the side where it converges fast.
    """
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _away_from_0(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_0(1 + term * d)
            c = _away_from_0(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return math.exp(front) * fraction / a


def _away_from_0(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
