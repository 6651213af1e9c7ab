"""Let the engines of a process take turns on the device."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BACKGROUND_SHARE = 0.05  # of the time, for steps in the background
_RECENT_S = 0.05  # an engine that computed so short ago is busy: it only prepares its next step


class Turns:
    """One engine computes at a time.

    While one computes for users, steps that only background requests of another engine need get a small share of the
    time. So two engines in one process do not halve each other's speed for requests that nobody waits for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._computing = threading.Lock()
        self._lock = threading.Lock()  # for the times and numbers
        self._num_busy = 0  # steps for users that compute or wait for their turn
        self._busy_at_s = -float("inf")  # end of the last one
        self._next_at_s = -float("inf")  # the next step in the background, while others are busy

    @contextmanager
    def take(self, *, is_background: bool) -> Iterator[None]:
        """Compute a step in the block."""
        with self._lock:
            self._num_busy += not is_background
        try:
            with self._computing:
                started_s = self._clock()
                yield
        finally:
            ended_s = self._clock()
            with self._lock:
                if is_background:
                    self._next_at_s = ended_s + (ended_s - started_s) * (1 / BACKGROUND_SHARE - 1)
                else:
                    self._num_busy -= 1
                    self._busy_at_s = ended_s

    def waits_if_busy(self, condition: threading.Condition) -> bool:
        """Wait before a background step, while others are busy.

        Returns whether it waited. Then there may be other work, as `condition` may have been notified.
        """
        wait_s = self._wait_s()
        if wait_s > 0:
            condition.wait(wait_s)
        return wait_s > 0

    def is_busy(self) -> bool:
        """Return whether an engine computes for users now."""
        with self._lock:
            return self._num_busy > 0 or self._clock() < self._busy_at_s + _RECENT_S

    def _wait_s(self) -> float:
        """Return the time to the next step in the background."""
        return max(0.0, self._next_at_s - self._clock()) if self.is_busy() else 0.0
