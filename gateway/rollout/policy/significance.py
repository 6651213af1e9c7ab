"""The significance tests of the guard, as small exact formulas.

Rates are tested with the exact binomial distribution. The normal approximation is wrong for rare events, and errors are
rare. Stable's unknown rate is bounded by the limits of Clopper and Pearson (Biometrika 26, 1934), combined as proposed
by Berger and Boos (JASA 89, 1994). Times are tested with the rank-sum test of Mann and Whitney (1947), combined over
kinds of requests as proposed by van Elteren (1960).
"""

import math
from collections.abc import Sequence

from gateway.rollout.policy.histograms import Histogram

# Share of a test's level that is spent on the uncertainty of stable's rate.
_NUISANCE_SHARE = 0.1
_MAX_STEPS = 60  # of the search for a rate. Usually it takes fewer than ten
_PRECISION = 1e-12  # of the rate
_MAX_TERMS = 100_000  # of the continued fraction, which needs about the square root of the number of trials


def p_rate_above(stable: tuple[int, int], canary: tuple[int, int], increase: float, level: float) -> float:
    """Return a p-value for a rate that is too high.

    It tests the hypothesis 'the canary's rate is at most stable's plus `increase`'.

    Args:
        stable: (events, trials) of the stable release.
        canary: (events, trials) of the canary.
        increase: highest difference of rates that is allowed.
        level: the level that the p-value will be compared with. It is valid for this level only.
    """
    nuisance = level * _NUISANCE_SHARE
    highest = min(1.0, upper_limit(*stable, nuisance) + increase)
    return min(1.0, binomial_tail(*canary, highest) + nuisance)


def p_rate_below(stable: tuple[int, int], canary: tuple[int, int], increase: float, level: float) -> float:
    """Return a p-value for a rate that is low enough.

    It tests the hypothesis 'the canary's rate is at least stable's plus `increase`'. Arguments as of `p_rate_above`.
    """
    nuisance = level * _NUISANCE_SHARE
    events, trials = stable
    lowest = min(1.0, 1 - upper_limit(trials - events, trials, nuisance) + increase)
    events, trials = canary
    return min(1.0, binomial_tail(trials - events, trials, 1 - lowest) + nuisance)


def binomial_tail(events: int, trials: int, rate: float) -> float:
    """Return the probability of `events` or more.

    Each of `trials` independent trials has an event with probability `rate`.
    """
    if events <= 0:
        return 1.0
    if events > trials or rate <= 0:
        return 0.0
    return 1.0 if rate >= 1 else _regularized_beta(events, trials - events + 1, rate)


def upper_limit(events: int, trials: int, level: float) -> float:
    """Return the upper Clopper-Pearson limit of a rate.

    At this rate, `events` or fewer in `trials` still have probability `level`.
    """
    if events >= trials:
        return 1.0
    low, high, rate = 0.0, 1.0, (events + 1) / (trials + 2)
    log_ways = math.lgamma(trials + 1) - math.lgamma(events + 1) - math.lgamma(trials - events)
    for _ in range(_MAX_STEPS):
        chance = binomial_tail(trials - events, trials, 1 - rate)
        low, high = (rate, high) if chance > level else (low, rate)
        # Newton's method on the logarithm, and bisection where that leaves the limits.
        log_slope = log_ways + events * math.log(rate) + (trials - events - 1) * math.log1p(-rate)
        step = math.log(chance / level) * math.exp(math.log(chance) - log_slope) if chance > 0 else -1.0
        following = rate + step if low < rate + step < high else (low + high) / 2
        if abs(following - rate) <= _PRECISION * rate:
            break
        rate = following
    return rate


def rank_sum_z(strata: Sequence[tuple[Histogram, Histogram]]) -> float:
    """Return the z-score of the stratified rank-sum test.

    It is positive if the canary's values are higher than stable's, and 0 without pairs.

    Args:
        strata: pairs of histograms (stable, canary). Values are only compared within a pair.
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
    """Return P(Z >= z) of a standard normal Z."""
    return math.erfc(z / math.sqrt(2)) / 2


def _regularized_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b).

    It is the binomial tail P(X >= a) of a + b - 1 trials. The continued fraction (DLMF 8.17.22) is evaluated by the
    method of Lentz, on the side where it converges fast.
    """
    if x > (a + 1) / (a + b + 2):
        return 1 - _regularized_beta(b, a, 1 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, _MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return math.exp(front) * fraction / a


def _nonzero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300
