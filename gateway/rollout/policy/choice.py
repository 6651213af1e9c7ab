"""Choose the conversations that a canary answers.

The choice is a pure function, so all gateways choose alike without talking to each other.
"""

import hashlib

_POINTS = 2**53  # distinct floats in [0, 1)


def point(routing_key: str, rollout_id: str) -> float:
    """Return the point of a conversation in [0, 1).

    Points of different keys are spread evenly.

    Each rollout gives a conversation another point. So it is not always the same users who get a new release first.
    """
    digest = hashlib.sha256(f"{rollout_id}\0{routing_key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / _POINTS


def takes_canary(routing_key: str, rollout_id: str, weight_percent: float) -> bool:
    """Return whether the canary answers a conversation.

    A higher weight only moves conversations from stable to the canary, never back.
    """
    return point(routing_key, rollout_id) * 100 < weight_percent
