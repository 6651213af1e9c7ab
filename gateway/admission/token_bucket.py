"""Limit a rate per minute with a token bucket."""

import time
from collections.abc import Callable


class TokenBucket:
    """Token bucket that holds one minute's worth.

    For one event loop. Not a library's, for two reasons. The cost of an answer is known only at its end, so the level
    must be able to go below zero. A refused caller needs the exact wait. The moving windows of `limits` offer neither,
    and keep one entry per token.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start full.

        Args:
            per_minute: capacity, and amount refilled each minute.
            clock: returns monotonic seconds.
        """
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._filled_at_s = clock()

    def take(self, amount: int) -> float:
        """Take `amount`, or nothing if the level is too low.

        An amount above the capacity is granted from a full bucket. Its debt delays later requests.

        Returns:
            0 if the amount was taken, else the seconds until it can be.
        """
        self._refill()
        missing = min(amount, self.per_minute) - self._level
        if missing > 0:
            return missing / self.per_minute * 60
        self._level -= amount
        return 0.0

    def charge(self, amount: int) -> None:
        """Take `amount`, even if the level falls below zero."""
        self._refill()
        self._level -= amount

    def _refill(self) -> None:
        now_s = self._clock()
        self._level = min(self.per_minute, self._level + (now_s - self._filled_at_s) * self.per_minute / 60)
        self._filled_at_s = now_s
