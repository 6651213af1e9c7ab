"""Which conversations a canary answers: a pure function, so that every gateway decides alike without talking."""

import hashlib

_POINTS = 2**53  # as many as a float tells apart in [0, 1)


def point(routing_key: str, rollout_id: str) -> float:
    """Return where a conversation stands in a rollout, spread evenly over [0, 1).

    Another rollout puts it elsewhere, so it is not always the same people who meet a new release first.
    """
    digest = hashlib.sha256(f"{rollout_id}\0{routing_key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / _POINTS


def takes_canary(routing_key: str, rollout_id: str, weight_percent: float) -> bool:
    """Say whether the canary answers a conversation; raising the weight moves conversations one way only."""
    return point(routing_key, rollout_id) * 100 < weight_percent
