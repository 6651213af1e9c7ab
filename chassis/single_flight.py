"""One computation for all who want the same thing at the same time."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Landed(Generic[R]):
    """What a flight brought."""

    result: R
    joined: bool  # whether another caller had started it


@dataclass(slots=True, eq=False)
class _Flight(Generic[R]):
    task: asyncio.Task[R]
    num_waiting: int = 0


class SingleFlight(Generic[K, R]):
    """Work under way by key; nothing is kept once it has ended. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[R]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> Landed[R]:
        """Wait for the work of `key`, begun here with `work()` where nobody has.

        A caller that is cancelled leaves the others waiting; the last one to leave cancels the work.

        Raises:
            whatever the work raises, for every caller.
        """
        joined = key in self._flights
        flight = self._flights[key] if joined else self._start(key, work)
        flight.num_waiting += 1
        try:
            return Landed(await asyncio.shield(flight.task), joined)
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0 and not flight.task.done():
                flight.task.cancel()
                self._land(key, flight)  # at once, so that nobody joins what was cancelled

    def _start(self, key: K, work: Callable[[], Coroutine[Any, Any, R]]) -> _Flight[R]:
        flight = self._flights[key] = _Flight(asyncio.create_task(work()))
        flight.task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    def _land(self, key: K, flight: _Flight[R]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
