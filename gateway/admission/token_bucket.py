"""How much of something a minute: a bucket that refills by itself."""

import time
from collections.abc import Callable


class Bucket:
    """Holds what one minute allows, and fills at that rate; for one event loop.

    Ours and not a library's: what an answer costs is known when it ends, so a bucket must go below zero, and who is
    refused must hear exactly how long to wait. The moving windows of `limits` know neither, and keep an entry a token.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start full. `clock` gives seconds and never goes back."""
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute)
        self._at_s = clock()

    def take(self, amount: int) -> float:
        """Take `amount` and return 0, or take nothing and return the seconds until it would be there.

        More than the bucket holds is given out where it is full; what is missing is paid back by those who follow.
        """
        self._fill()
        missing = min(amount, self.per_minute) - self._level
        if missing > 0:
            return missing / self.per_minute * 60
        self._level -= amount
        return 0.0

    def charge(self, amount: int) -> None:
        """Take `amount`, there or not."""
        self._fill()
        self._level -= amount

    def _fill(self) -> None:
        now_s = self._clock()
        self._level = min(self.per_minute, self._level + (now_s - self._at_s) * self.per_minute / 60)
        self._at_s = now_s
