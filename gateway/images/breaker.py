"""A circuit breaker for a service that keeps failing."""

import time
from collections.abc import Callable


class CircuitBreaker:
    """Stops calls after failures, then allows one per pause.

    For one event loop. The known libraries do not fit: aiobreaker is unmaintained, pybreaker has no asyncio, and
    purgatory allows every caller at the end of a pause and counts a cancelled caller as a failure.
    """

    def __init__(self, *, max_failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start closed.

        Args:
            max_failures: consecutive failures that open the breaker.
            pause_s: seconds between two attempts while it is open.
            clock: monotonic seconds.
        """
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._clock = clock
        self._num_failures = 0  # consecutive
        self._next_attempt_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there were too many failures since the last success."""
        return self._num_failures >= self._max_failures

    def allow(self) -> bool:
        """Return whether a call is allowed now.

        While the breaker is open, one attempt per pause is. An abandoned attempt needs no report: the next is allowed
        after the usual pause.
        """
        if not self.is_open:
            return True
        if self._clock() < self._next_attempt_s:
            return False
        self._next_attempt_s = self._clock() + self._pause_s
        return True

    def record_success(self) -> None:
        """Close the breaker."""
        self._num_failures = 0

    def record_failure(self) -> None:
        """Count a failure. Too many open the breaker."""
        self._num_failures += 1
        if self._num_failures == self._max_failures:
            self._next_attempt_s = self._clock() + self._pause_s
