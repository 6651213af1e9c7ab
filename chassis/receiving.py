"""Bound the memory of messages that are being received.

gRPC keeps a message in memory while its bytes arrive, and says neither how large it will be nor how much is there.
Before a read begins, only the flow-control window of its stream can arrive (64 KiB). So a read takes a place first,
with room for the largest message, and there are only so many places.

Each caller has a share of the places, and each connection a smaller one. Other reads wait, and callers take turns. A
client that sends slowly may keep its place as long as nobody needs it. If somebody waits, the oldest read that has
taken seconds is refused. Reads take milliseconds, and on a busy machine a tenth of a second.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from chassis.errors import DeadlineExceeded, ResourceExhausted
from chassis.pauses import Pauses
from chassis.sender import Sender

# Time that each read has in any case, seconds.
PATIENCE_S = 5.0
# Calls that wait for a place, each with an unread window. Of these, half may be of one caller.
MAX_WAITING = 2048
MAX_PAUSED = 256  # of one owner, during its pause
_RETRY_S = 1.0

Read = Callable[[], Awaitable[Any]]


@dataclass(slots=True, eq=False)
class _Attempt:
    """One read, or a call that waits for its place."""

    sender: Sender
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    timeout: asyncio.Timeout | None = None
    is_refused: bool = False


class ReceiveBudget:
    """Room for messages that are being received.

    For one event loop.
    """

    def __init__(self, *, num_places: int, timeout_s: float, patience_s: float = PATIENCE_S) -> None:
        """Start empty.

        Args:
            num_places: messages that may arrive at once.
            timeout_s: longest time for one message to arrive, the wait for a place included.
            patience_s: time that each read has in any case.
        """
        self.num_places = num_places
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._by_owner: Counter[str] = Counter()  # reads
        self._by_connection: Counter[str] = Counter()
        self._queues: OrderedDict[str, deque[_Attempt]] = OrderedDict()  # by owner, the next turn first
        self._old: dict[_Attempt, None] = {}  # reads that may be refused, the oldest first
        self._num_leaving = 0  # refused reads that still have their place
        self._pauses = Pauses()

    @property
    def num_reads(self) -> int:
        """Number of places in use."""
        return self._by_owner.total()

    @property
    def num_waiting(self) -> int:
        """Number of calls that wait for a place."""
        return sum(map(len, self._queues.values()))

    async def receive(self, read: Read, sender: Sender) -> Any:
        """Return what `read` returns, one message.

        Raises:
            ResourceExhausted: reason 'RECEIVING_BUSY', too many calls wait, or they wait for a message that is slow.
            DeadlineExceeded: reason 'RECEIVE_TIMEOUT', the message did not arrive in time.
        """
        attempt = _Attempt(sender)
        try:
            async with asyncio.timeout(self._timeout_s) as attempt.timeout:
                await self._enter(attempt)
                timer = asyncio.get_running_loop().call_later(self._patience_s, self._grow_old, attempt)
                try:
                    return await read()
                finally:
                    timer.cancel()
                    self._leave(attempt)
        except TimeoutError:
            if attempt.is_refused:
                raise _busy() from None
            raise DeadlineExceeded(
                f"The message did not arrive within {self._timeout_s:g} s: send it faster, or a smaller one.",
                reason="RECEIVE_TIMEOUT",
            ) from None

    async def _enter(self, attempt: _Attempt) -> None:
        """Occupy a place, after those who wait."""
        owner = attempt.sender.owner
        queue = self._queues.get(owner)
        most = MAX_PAUSED if self._pauses.holds(attempt.sender) else MAX_WAITING // 2
        if len(queue or ()) >= most or self.num_waiting >= MAX_WAITING:
            raise _busy()
        self._queues.setdefault(owner, deque()).append(attempt)
        self._grant()
        self._make_room()
        try:
            await attempt.turn
        except asyncio.CancelledError:
            if not attempt.turn.cancelled():  # the place was granted just before the cancellation
                self._leave(attempt)
            elif attempt in (queue := self._queues.get(owner, deque())):
                queue.remove(attempt)
                if not queue:
                    del self._queues[owner]
            raise

    def _may_enter(self, sender: Sender, *, without: Sender | None = None) -> bool:
        """Return whether there is a place for a sender.

        An owner may have half of them, a connection a quarter.

        Args:
            sender: of a message.
            without: sender of a read that is taken to have ended.
        """
        num_reads, of_owner, of_connection = (
            self.num_reads,
            self._by_owner[sender.owner],
            self._by_connection[sender.connection],
        )
        if without is not None:
            num_reads -= 1
            of_owner -= sender.owner == without.owner
            of_connection -= sender.connection == without.connection
        return (
            num_reads < self.num_places
            and of_owner < max(1, self.num_places // 2)
            and of_connection < max(1, self.num_places // 4)
            and not self._pauses.holds(sender)
        )

    def accept(self, sender: Sender) -> None:
        """Note that a sender's message had a good size."""
        self._pauses.accept(sender)

    def pause(self, sender: Sender) -> None:
        """Pause the sender of an oversized message."""

        def end() -> None:
            self._pauses.end(sender.owner)
            self._grant()

        asyncio.get_running_loop().call_later(self._pauses.begin(sender), end)

    def _leave(self, attempt: _Attempt) -> None:
        for counts, key in ((self._by_owner, attempt.sender.owner), (self._by_connection, attempt.sender.connection)):
            counts[key] -= 1
            if not counts[key]:
                del counts[key]
        self._old.pop(attempt, None)
        self._num_leaving -= attempt.is_refused
        self._grant()

    def _grant(self) -> None:
        """Give free places to the owners in turn."""
        for owner in [*self._queues]:
            if self.num_reads >= self.num_places:
                return
            queue = self._queues[owner]
            attempt = next((one for one in queue if not one.turn.done() and self._may_enter(one.sender)), None)
            if attempt is None:
                continue
            queue.remove(attempt)
            self._by_owner[owner] += 1
            self._by_connection[attempt.sender.connection] += 1
            attempt.turn.set_result(None)
            self._queues.move_to_end(owner)
            if not queue:
                del self._queues[owner]

    def _grow_old(self, attempt: _Attempt) -> None:
        self._old[attempt] = None
        self._make_room()

    def _make_room(self) -> None:
        """Refuse slow reads, the oldest first.

        One leaves for each call that could take its place.
        """
        for attempt in [*self._old]:
            if self._num_leaving >= self.num_waiting:
                return
            if not any(self._may_enter(queue[0].sender, without=attempt.sender) for queue in self._queues.values()):
                continue
            now_s, ends_s = asyncio.get_running_loop().time(), attempt.timeout and attempt.timeout.when()
            if attempt.timeout is not None and ends_s is not None and now_s < ends_s:
                del self._old[attempt]
                attempt.is_refused = True
                self._num_leaving += 1
                attempt.timeout.reschedule(now_s)


def _busy() -> ResourceExhausted:
    return ResourceExhausted(
        "Too many large or slow messages arrive at once: retry later, or send smaller ones.",
        reason="RECEIVING_BUSY",
        retry_after_s=_RETRY_S,
    )
