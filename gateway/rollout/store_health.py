"""Report whether the rollout store answers, in metrics and logs."""

import time

import structlog
from prometheus_client import Gauge

from chassis.errors import TandemError

STORE_UP = Gauge("tandem_rollout_store_up", "1 if this gateway reaches the rollout store, else 0.")
GUARD_AGE = Gauge(
    "tandem_rollout_guard_age_seconds",
    "Time since this gateway last read the rollout store, added its counts and judged them, seconds.",
)

_log = structlog.get_logger()


class StoreHealth:
    """The problems of the store since it last worked.

    Each is logged once.
    """

    def __init__(self) -> None:
        self._problems: set[str] = set()
        self._worked_at_s = time.monotonic()
        GUARD_AGE.set_function(lambda: time.monotonic() - self._worked_at_s)

    @property
    def is_good(self) -> bool:
        """Whether there is no problem."""
        return not self._problems

    def note_problem(self, error: Exception) -> None:
        """Note that a call of the store failed."""
        problem = error.message if isinstance(error, TandemError) else repr(error)
        if problem not in self._problems:
            if isinstance(error, TandemError):
                _log.error("rollout store unreachable", reason=error.reason, error=error.local_message)
            else:
                _log.error("rollout sync failed", exc_info=error)
        self._problems.add(problem)
        STORE_UP.set(0)

    def note_success(self) -> None:
        """Note that the store answered every call of a tick."""
        if self._problems:
            _log.info("rollout store reachable again")
            self._problems.clear()
        self._worked_at_s = time.monotonic()
        STORE_UP.set(1)
