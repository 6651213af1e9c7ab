# LEAD'S NOTE TO S1 (remove before commit): on a loaded machine tests/end_to_end/test_failures.py -k "short and vision" fails:
# 4 of 56 honest requests get RESOURCE_EXHAUSTED/RECEIVING_BUSY (all clients are one host, as behind a proxy or the HTTP door,
# and a busy loop makes reads of small messages last over 0.1 s). An honest caller must never be refused because the loop or
# the machine is busy: e.g. count a read as slow only by what the sender did (its bytes do not come although we poll), keep
# small reads free, let a slow read wait rather than be refused, and give authenticated callers shares by caller, not host.
# Run that test, tests/end_to_end/test_cancels.py and tests/gateway after your change, with other work on the machine.
"""Bound the memory of messages that are being received.

gRPC keeps a message in memory while its bytes arrive, and says neither how large it will be nor how much is there.
Before a read begins, only the flow-control window of its stream can arrive (64 KiB). So a read takes a place first,
with room for the largest message, and there are only so many places.

A client that sends slowly keeps its place for long. A read that takes longer than a moment is slow. Slow reads get a
share of the places only, and each connection, host and caller a share of its own. A read beyond a share is refused. So
some places always change hands within a moment, and other clients wait no longer than that.
"""

import asyncio
import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from chassis.errors import DeadlineExceeded, ResourceExhausted
from chassis.network import peer_host

# Longest quick read, seconds. A request that has arrived is read within a millisecond.
QUICK_S = 0.1
# Calls that wait for a place, each with an unread window. Of these, half may be of one host.
MAX_WAITING = 2048
_RETRY_S = 1.0

Read = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Sender:
    """The origin of a message.

    Attributes:
        connection: gRPC's name of the peer, with its port.
        host: its network address, for IPv6 the network of 64 bits, which is one customer's.
        caller: name of the tenant or certificate. Empty for a stranger.
    """

    connection: str
    host: str
    caller: str

    @classmethod
    def of(cls, peer: str, caller: str = "") -> "Sender":
        """Return the sender of a call.

        Args:
            peer: gRPC's name of the peer, such as 'ipv4:10.0.0.1:5000'.
            caller: name of the tenant or certificate.
        """
        host = peer_host(peer)
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return cls(peer, host, caller)
        if address.version == 6 and address.ipv4_mapped is None:
            host = str(ipaddress.ip_network((address, 64), strict=False).network_address)
        return cls(peer, host, caller)


class ReceiveBudget:
    """Room for messages that are being received.

    For one event loop.
    """

    def __init__(self, *, max_bytes: int, max_message_bytes: int, timeout_s: float) -> None:
        """Start empty.

        Args:
            max_bytes: room for all messages that arrive at once. There is always room for two.
            max_message_bytes: largest message.
            timeout_s: longest time for one message to arrive, the wait for a place included.
        """
        self.num_places = max(2, max_bytes // max_message_bytes)
        self._timeout_s = timeout_s
        self._reads: Counter[str] = Counter()  # by host
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by host, the next turn first
        self._slow: Counter[tuple[str, str]] = Counter()
        self._num_slow = 0

    @property
    def num_reads(self) -> int:
        """Number of places in use."""
        return self._reads.total()

    @property
    def num_waiting(self) -> int:
        """Number of calls that wait for a place."""
        return sum(map(len, self._queues.values()))

    async def receive(self, read: Read, sender: Sender) -> Any:
        """Return what `read` returns, one message.

        Raises:
            ResourceExhausted: reason 'RECEIVING_BUSY', too many messages arrive, or too many of this sender slowly.
            DeadlineExceeded: reason 'RECEIVE_TIMEOUT', the message did not arrive in time.
        """
        loop = asyncio.get_running_loop()
        attempt = _Attempt(sender)
        try:
            async with asyncio.timeout(self._timeout_s) as attempt.timeout, self._place(sender.host):
                timer = loop.call_later(QUICK_S, self._turn_slow, attempt)
                try:
                    return await read()
                finally:
                    timer.cancel()
                    self._end_slow(attempt)
        except TimeoutError:
            if attempt.is_refused:
                raise _busy() from None
            raise DeadlineExceeded(
                f"The message did not arrive within {self._timeout_s:g} s: send it faster, or a smaller one.",
                reason="RECEIVE_TIMEOUT",
            ) from None

    @asynccontextmanager
    async def _place(self, host: str) -> AsyncIterator[None]:
        """Occupy a place for the block, after those who wait."""
        if self._is_free(host) and not self._queues:
            self._reads[host] += 1
        else:
            await self._wait(host)
        try:
            yield
        finally:
            self._leave(host)

    async def _wait(self, host: str) -> None:
        """Wait for a place. Hosts take turns."""
        queue = self._queues.get(host, ())
        if len(queue) >= MAX_WAITING // 2 or self.num_waiting >= MAX_WAITING:
            raise _busy()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(host, deque()).append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the place was granted just before the cancellation
                self._leave(host)
            elif (waiting := self._queues.get(host)) is not None and turn in waiting:
                waiting.remove(turn)
                if not waiting:
                    del self._queues[host]
            raise

    def _is_free(self, host: str) -> bool:
        """Return whether there is a place for a host, which may have half of them."""
        return self.num_reads < self.num_places and self._reads[host] < max(1, self.num_places // 2)

    def _leave(self, host: str) -> None:
        self._reads[host] -= 1
        if not self._reads[host]:
            del self._reads[host]
        self._grant()

    def _grant(self) -> None:
        """Give free places to the hosts in turn."""
        for host in [*self._queues]:
            queue = self._queues[host]
            while queue and queue[0].done():  # done means cancelled
                queue.popleft()
            if queue and self._is_free(host):
                self._reads[host] += 1
                queue.popleft().set_result(None)
                self._queues.move_to_end(host)
            if not queue:
                del self._queues[host]
            if self.num_reads >= self.num_places:
                return

    def _turn_slow(self, attempt: "_Attempt") -> None:
        """Count a read as slow, or refuse it."""
        shares = self._shares(attempt.sender)
        if self._num_slow < max(1, self.num_places * 3 // 4) and all(
            self._slow[key] < share for key, share in shares.items()
        ):
            self._num_slow += 1
            self._slow.update([*shares])
            attempt.is_slow = True
            return
        now_s, ends_s = asyncio.get_running_loop().time(), attempt.timeout and attempt.timeout.when()
        if attempt.timeout is not None and ends_s is not None and now_s < ends_s:
            attempt.is_refused = True
            attempt.timeout.reschedule(now_s)

    def _end_slow(self, attempt: "_Attempt") -> None:
        if attempt.is_slow:
            self._num_slow -= 1
            self._slow.subtract([*self._shares(attempt.sender)])
            self._slow += Counter()  # forget senders without slow reads

    def _shares(self, sender: Sender) -> dict[tuple[str, str], int]:
        """Return the most slow reads of a sender, by what it is."""
        shares = {
            ("connection", sender.connection): max(1, self.num_places // 8),
            ("host", sender.host): max(1, self.num_places // 4),
        }
        if sender.caller:
            shares["caller", sender.caller] = max(1, self.num_places // 2)
        return shares


@dataclass(slots=True, eq=False)
class _Attempt:
    """One read."""

    sender: Sender
    timeout: asyncio.Timeout | None = None
    is_slow: bool = False
    is_refused: bool = False


def _busy() -> ResourceExhausted:
    return ResourceExhausted(
        "Too many large or slow messages arrive at once: retry later, or send smaller ones.",
        reason="RECEIVING_BUSY",
        retry_after_s=_RETRY_S,
    )
