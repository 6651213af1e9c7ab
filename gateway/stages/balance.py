"""Choose one of several equal replicas by load and by prefix.

Pure functions, which the gateway and `benchmarks.fleet_simulation` share.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

Routing = Literal["prefix", "least-busy"]

# Chance alone varies the calls of a replica by the root of their mean. Twice that is too much for one prefix.
_DEVIATIONS = 2.0
_FREE_CALLS = 4  # and always this many: a small batch delays nobody


def least_busy(calls: Mapping[str, int], turn: int) -> str:
    """Return the replica with the fewest calls in flight.

    Equals take turns.

    Args:
        calls: calls in flight by replica. At least one replica.
        turn: number of the choice.
    """
    fewest = min(calls.values())
    idlest = [replica for replica, number in calls.items() if number == fewest]
    return idlest[turn % len(idlest)]


def by_prefix(calls: Mapping[str, int], prefix: bytes) -> str:
    """Return the replica with a prefix, unless it is loaded.

    Each replica has a rank for each prefix (rendezvous hashing: Thaler and Ravishankar, 1998). The first in rank whose
    load is within a bound gets the call (bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018). So all gateways
    agree without talking to each other, a hot prefix spreads to as many replicas as it needs, and a replica that comes
    or goes moves only its own prefixes.

    Args:
        calls: calls in flight by replica. At least one replica.
        prefix: digest of the beginning of the prompt.
    """
    mean = (sum(calls.values()) + 1) / len(calls)
    most = max(_FREE_CALLS, math.ceil(mean + _DEVIATIONS * math.sqrt(mean)))
    free = [replica for replica, number in calls.items() if number < most]
    return max(free, key=lambda replica: _rank(replica, prefix))


def _rank(replica: str, prefix: bytes) -> bytes:
    return hashlib.blake2b(replica.encode(), key=prefix[:64], digest_size=8).digest()
