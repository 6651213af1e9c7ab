"""A circuit breaker: what keeps failing is left alone for a while, then tried once."""

import time
from collections.abc import Callable


class Breaker:
    """Counts failures in a row; for one event loop.

    Our own because the libraries do not fit: aiobreaker is no longer kept, pybreaker is not for asyncio, and purgatory
    lets every caller try at once when a pause ends and takes a caller that leaves for a failure.
    """

    def __init__(self, *, max_failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start closed.

        Args:
            max_failures: that many in a row open it.
            pause_s: seconds between two tries while it is open.
            clock: seconds, never going back.
        """
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._clock = clock
        self._num_failures = 0
        self._next_try = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it has failed too often and not succeeded since."""
        return self._num_failures >= self._max_failures

    def allows(self) -> bool:
        """Return whether to try now; while it is open, one caller a pause may.

        Who may try and then leaves need not say so: the next pause ends as the last one did.
        """
        if not self.is_open:
            return True
        if self._clock() < self._next_try:
            return False
        self._next_try = self._clock() + self._pause_s
        return True

    def succeeded(self) -> None:
        """Close it."""
        self._num_failures = 0

    def failed(self) -> None:
        """Count a failure; the one that opens it starts the first pause."""
        self._num_failures += 1
        if self._num_failures == self._max_failures:
            self._next_try = self._clock() + self._pause_s
