"""Test exactly how much more often a canary answers wrong.

Both releases answer the same probes. A probe is lost if only stable's answer is right, and gained if only the canary's
is. The drop is the probability of a loss minus that of a gain. A bound on it is a question of non-inferiority.
McNemar's exact test answers that only for a bound of 0, and says nothing where both releases always agree. Agreement
is the strongest evidence there is.

So the test bets. It starts with a capital of 1 and stakes a fixed share on each probe. Under the hypothesis the bet
is fair or worse, so by Ville's inequality (1939) the chance that the capital ever reaches 1 / p is at most p. The
share is not tuned to the answers: the capital is spread evenly over a fixed grid of shares (Robbins' method of
mixtures, Ann. Math. Stat. 41, 1970). For bounded means this is the betting of Waudby-Smith and Ramdas (JRSS B 86,
2024). It is exact for any number of probes, needs no nuisance parameter, and holds at every look, so further probes
and early looks cost no allowance.
"""

import math
from functools import lru_cache

_NUM_SHARES = 64
_NUM_BISECTIONS = 40  # of a confidence limit: far below a millionth


def p_drop_above(lost: int, gained: int, total: int, bound: float) -> float:
    """Return a p-value for a drop that is too large.

    It tests the hypothesis 'the drop is at most `bound`'.

    Args:
        lost: probes that only stable answered right.
        gained: probes that only the canary answered right.
        total: probes that both answered, at least `lost + gained`.
        bound: highest drop that is allowed, in (-1, 1).
    """
    return p_drop_below(gained, lost, total, -bound)


@lru_cache(maxsize=1024)  # the same probes are judged at every look
def p_drop_below(lost: int, gained: int, total: int, bound: float) -> float:
    """Return a p-value for a drop that is small enough.

    It tests the hypothesis 'the drop is at least `bound`'. Arguments as of `p_drop_above`.
    """
    unchanged = total - lost - gained
    capitals = [
        (lost and lost * loss) + (unchanged and unchanged * equal) + (gained and gained * gain)
        for loss, equal, gain in _log_factors(bound)
    ]
    highest = max(capitals)
    if highest == -math.inf:
        return 1.0
    log_mean = highest + math.log(sum(math.exp(one - highest) for one in capitals) / _NUM_SHARES)
    return math.exp(min(0.0, -log_mean))


def drop_interval(lost: int, gained: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the drop.

    It has every bound that neither test rejects at half of the error. It is (-1, 1) without probes.
    """
    level = (1 - confidence) / 2
    return -_highest_drop(gained, lost, total, level), _highest_drop(lost, gained, total, level)


def _highest_drop(lost: int, gained: int, total: int, level: float) -> float:
    """Return the upper confidence limit of the drop."""
    low, high = (lost - gained) / total if total else -1.0, 1.0
    if low >= high:
        return 1.0
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        if p_drop_below(lost, gained, total, middle) > level:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=256)  # a rollout has one bound, and looks at many slices after each probe
def _log_factors(bound: float) -> tuple[tuple[float, float, float], ...]:
    """Return how one probe changes the logarithm of the capital.

    For each share of the grid: a lost probe, one with equal verdicts, and a gained one.
    """
    largest = 1 / (1 - bound)  # a larger share could lose more than the capital
    shares = [largest * number / _NUM_SHARES for number in range(1, _NUM_SHARES + 1)]
    return tuple(
        (_log(1 - share * (1 - bound)), _log(1 + share * bound), _log(1 + share * (1 + bound))) for share in shares
    )


def _log(factor: float) -> float:
    return math.log(factor) if factor > 1e-12 else -math.inf  # ruin, but for rounding
