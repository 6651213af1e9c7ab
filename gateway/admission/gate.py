"""What is inside at once, bounded by number, with a bounded queue before it, and by bytes; the rest is refused."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from chassis.back_pressure import time_to_clear_s
from chassis.errors import ResourceExhausted

# Weight of the newest stay in the running mean of how long one lasts.
_NEWEST = 0.1


class Gate:
    """Lets `max_running` in, has `max_waiting` wait in order of arrival, and refuses more. For one event loop."""

    def __init__(self, *, max_running: int, max_waiting: int, who: str, reason: str) -> None:
        """Start empty.

        Args:
            max_running: most inside at once.
            max_waiting: most who wait.
            who: the sentence's subject when it refuses: 'The gateway'.
            reason: the error's reason when it refuses.
        """
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.num_running = 0
        self._who = who
        self._reason = reason
        self._mean_stay_s = 0.0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def num_waiting(self) -> int:
        """Those who wait for their turn."""
        return len(self._queue)

    def resize(self, *, max_running: int, max_waiting: int) -> None:
        """Change both limits: nobody is sent away, and who waits takes at once what has become free."""
        self.max_running, self.max_waiting = max_running, max_waiting
        self._let_in()

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Be inside while the block runs, after a wait where all places are taken.

        Raises:
            ResourceExhausted: the queue is full; says when to come again.
        """
        await self._get_in()
        since = time.monotonic()
        try:
            yield
        finally:
            self._mean_stay_s += _NEWEST * (time.monotonic() - since - self._mean_stay_s)
            self._leave()

    def time_to_clear_s(self) -> float:
        """Return about how long those before a newcomer take, seconds."""
        return time_to_clear_s((self.num_waiting + 1) / self.max_running, self._mean_stay_s)

    async def _get_in(self) -> None:
        if self.num_running < self.max_running and not self._queue:
            self.num_running += 1
            return
        if len(self._queue) >= self.max_waiting:
            raise ResourceExhausted(
                f"{self._who} has {self.num_running} requests running and {self.num_waiting} waiting.",
                reason=self._reason,
                retry_after_s=self.time_to_clear_s(),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was given in the very moment its taker was cancelled
                self._leave()
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def _leave(self) -> None:
        self.num_running -= 1
        self._let_in()

    def _let_in(self) -> None:
        """Give each free place to who waits longest."""
        while self._queue and self.num_running < self.max_running:
            turn = self._queue.popleft()
            if not turn.done():  # else its taker was cancelled
                self.num_running += 1
                turn.set_result(None)


class ByteLimit:
    """Bounds the bytes of the requests that wait or run; a queue bounded by number alone would hold any amount."""

    def __init__(self, max_bytes: int) -> None:
        """Start empty."""
        self._max_bytes = max_bytes
        self.num_bytes = 0

    @contextmanager
    def hold(self, num_bytes: int, *, retry_after_s: float) -> Iterator[None]:
        """Count a request's bytes for the length of the block.

        Raises:
            ResourceExhausted: reason 'BYTES_BUSY'; says to come again after `retry_after_s`.
        """
        if self.num_bytes + num_bytes > self._max_bytes:
            raise ResourceExhausted(
                f"The gateway holds {self.num_bytes} bytes of requests and takes {self._max_bytes} at once.",
                reason="BYTES_BUSY",
                retry_after_s=retry_after_s,
            )
        self.num_bytes += num_bytes
        try:
            yield
        finally:
            self.num_bytes -= num_bytes
