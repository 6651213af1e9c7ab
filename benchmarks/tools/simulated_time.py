"""An event loop whose clock jumps to the next timer.

The gateway's own coroutines run on it as they are, and a day takes minutes.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Ends each wait at once, and moves the clock instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        """Return no events, `timeout` seconds later.

        Raises:
            RuntimeError: nothing will ever happen again.
        """
        if timeout is None:
            raise RuntimeError("every simulated task waits for another one")
        self.now_s += max(0.0, timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs coroutines in simulated time, from second 0 on.

    Threads, processes and sockets do not work in it.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the simulated seconds."""
        return self._jumping.now_s


def simulate(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time and return its result."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)
