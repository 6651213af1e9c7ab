"""Limit concurrent requests, with a bounded queue, and their bytes."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from chassis.back_pressure import time_to_clear_s
from chassis.errors import ResourceExhausted

# Weight of the newest request in the moving average of durations.
_NEWEST_WEIGHT = 0.1


class ConcurrencyLimit:
    """Concurrency limit with a bounded FIFO queue.

    For one event loop.
    """

    def __init__(self, *, max_running: int, max_waiting: int, subject: str, reason: str) -> None:
        """Start empty.

        Args:
            max_running: most requests that run at once.
            max_waiting: most requests in the queue. Further ones are refused.
            subject: subject of the error message, such as 'The gateway'.
            reason: the error's reason.
        """
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.num_running = 0
        self._subject = subject
        self._reason = reason
        self._mean_duration_s = 0.0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def num_waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    def resize(self, *, max_running: int, max_waiting: int) -> None:
        """Change both limits.

        No running or queued request is refused. New slots go to the queue at once.
        """
        self.max_running, self.max_waiting = max_running, max_waiting
        self._start_queued()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait in the queue, then occupy a slot.

        The slot is released at the end of the block.

        Raises:
            ResourceExhausted: the queue is full. `retry_after_s` says when to retry.
        """
        await self._acquire()
        started_s = time.monotonic()
        try:
            yield
        finally:
            self._mean_duration_s += _NEWEST_WEIGHT * (time.monotonic() - started_s - self._mean_duration_s)
            self._release()

    def time_to_clear_s(self) -> float:
        """Estimate the seconds until a new request would start."""
        return time_to_clear_s((self.num_waiting + 1) / self.max_running, self._mean_duration_s)

    async def _acquire(self) -> None:
        if self.num_running < self.max_running and not self._queue:
            self.num_running += 1
            return
        if len(self._queue) >= self.max_waiting:
            raise ResourceExhausted(
                f"{self._subject} has {self.num_running} requests running and {self.num_waiting} waiting, its limits: "
                "retry later.",
                reason=self._reason,
                retry_after_s=self.time_to_clear_s(),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was granted just before the cancellation
                self._release()
            elif turn in self._queue:
                self._queue.remove(turn)
            raise

    def _release(self) -> None:
        self.num_running -= 1
        self._start_queued()

    def _start_queued(self) -> None:
        """Grant free slots to the oldest requests in the queue."""
        while self._queue and self.num_running < self.max_running:
            turn = self._queue.popleft()
            if not turn.done():  # done means cancelled
                self.num_running += 1
                turn.set_result(None)


class ByteLimit:
    """Limit on the bytes of all queued and running requests.

    The queue bounds only the number of requests, and a few large ones can exhaust the memory.
    """

    def __init__(self, max_bytes: int, *, subject: str = "The gateway") -> None:
        """Start empty.

        Args:
            max_bytes: limit for all reservations together.
            subject: subject of the error message.
        """
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._subject = subject

    def take(self, num_bytes: int, *, retry_after_s: float) -> None:
        """Reserve bytes.

        Raises:
            ResourceExhausted: reason 'BYTES_BUSY', with the given `retry_after_s`.
        """
        if self.num_bytes + num_bytes > self.max_bytes:
            raise ResourceExhausted(
                f"{self._subject} has {self.num_bytes} bytes of requests and their images, and its limit is "
                f"{self.max_bytes}: retry later.",
                reason="BYTES_BUSY",
                retry_after_s=retry_after_s,
            )
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Return reserved bytes."""
        self.num_bytes -= num_bytes


class Reservation:
    """Bytes that one request holds, counted in several limits."""

    def __init__(self, limits: Sequence[ByteLimit], retry_after_s: Callable[[], float]) -> None:
        """Start empty.

        Args:
            limits: of all requests, and of the tenant.
            retry_after_s: estimates when a refused client should retry.
        """
        self.num_bytes = 0
        self._limits = limits
        self._retry_after_s = retry_after_s

    def grow(self, num_bytes: int) -> None:
        """Reserve more, in all limits or in none.

        Raises:
            ResourceExhausted: reason 'BYTES_BUSY'.
        """
        taken: list[ByteLimit] = []
        try:
            for limit in self._limits:
                limit.take(num_bytes, retry_after_s=self._retry_after_s())
                taken.append(limit)
        except ResourceExhausted:
            for limit in taken:
                limit.give_back(num_bytes)
            raise
        self.num_bytes += num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Return bytes that are held no longer.

        After `close` this has no effect.
        """
        num_bytes = min(num_bytes, self.num_bytes)
        self.num_bytes -= num_bytes
        for limit in self._limits:
            limit.give_back(num_bytes)

    def close(self) -> None:
        """Return all bytes."""
        self.shrink(self.num_bytes)
