"""Share one computation among concurrent callers with the same key."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class FlightResult(Generic[R]):
    """Result of a shared computation."""

    result: R
    joined: bool  # whether another caller started the computation


@dataclass(slots=True, eq=False)
class _Flight(Generic[R]):
    task: asyncio.Task[R]
    num_waiting: int = 0


class SingleFlight(Generic[K, R]):
    """Computations in flight, by key. For one event loop.

    Results are not cached.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[R]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> FlightResult[R]:
        """Await the work of `key`, and start it if needed.

        Cancelling a caller does not affect the others. The work is cancelled with its last caller.

        Raises:
            Exception: any error of the work, for every caller.
        """
        joined = key in self._flights
        flight = self._flights[key] if joined else self._start(key, work)
        flight.num_waiting += 1
        try:
            return FlightResult(await asyncio.shield(flight.task), joined)
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0 and not flight.task.done():
                flight.task.cancel()
                self._remove(key, flight)  # at once, so that no caller joins cancelled work

    def _start(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> _Flight[R]:
        flight = self._flights[key] = _Flight(asyncio.create_task(work()))
        flight.task.add_done_callback(lambda _: self._remove(key, flight))
        return flight

    def _remove(self, key: K, flight: _Flight[R]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
