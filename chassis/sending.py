"""Bound the time that responses wait for their clients.

gRPC sends a message once the client's flow-control window has room for it. A client that reads nothing would keep its
handler, with a slot and memory, as long as its connection lives. So a write that takes too long ends the handler.

The status of the call then waits behind the unread message, and gRPC offers no way to reset one call. This rest of the
call ends with its connection, or when the client reads. Each client may leave a bounded number of them.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import Gauge

from chassis.errors import Cancelled, ResourceExhausted

STALLED_CALLS = Gauge("tandem_rpc_stalled", "Calls whose error waits behind a response that the client does not read.")

# Stalled calls of one caller, and of all callers, before callers with some of them may begin no other stream.
MAX_STALLED_PER_CALLER = 256
MAX_STALLED = 4096
_RETRY_S = 10.0

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class ClientStalled(Cancelled):
    """The client reads no responses."""

    caller = ""


class SendingContext:
    """The context of a call, with limited writes."""

    def __init__(self, context: Context, caller: str, limit_s: float) -> None:
        """Limit nothing yet.

        Args:
            context: of the call. Everything but writing is its.
            caller: see `Sending.open`.
            limit_s: longest time of one write, seconds.
        """
        self._context = context
        self._caller = caller
        self._limit_s = limit_s
        self._writing: asyncio.Task[Any] | None = None
        self._since_s = 0.0  # start of the write
        self._timer: asyncio.TimerHandle | None = None  # one for many writes, which can be thousands a second
        self._has_stalled = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        """Send a response.

        Raises:
            ClientStalled: reason 'CLIENT_STALLED', the client has read nothing for too long.
        """
        loop = asyncio.get_running_loop()
        task = self._writing = asyncio.current_task()
        assert task is not None
        self._since_s = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s, self._check)
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            if self._has_stalled and task.uncancel() == 0:
                raise self._stalled() from None
            raise
        finally:
            self._writing = None

    def _stalled(self) -> ClientStalled:
        error = ClientStalled(
            f"The client has read nothing for {self._limit_s:g} s: read responses as they arrive.",
            reason="CLIENT_STALLED",
        )
        error.caller = self._caller
        return error

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        """End a write that takes too long."""
        self._timer = None
        if self._writing is None:
            return  # the next write starts the timer
        loop = asyncio.get_running_loop()
        ends_s = self._since_s + self._limit_s
        if loop.time() < ends_s:
            self._timer = loop.call_at(ends_s, self._check)
            return
        self._has_stalled = True
        self._writing.cancel()


class Sending:
    """The streams of responses of one server.

    For one event loop.
    """

    def __init__(self, limit_s: float) -> None:
        """Start without streams.

        Args:
            limit_s: longest time of one write, seconds.
        """
        self._limit_s = limit_s
        self._num_stalled: Counter[str] = Counter()  # by caller

    @contextmanager
    def open(self, context: Context, caller: str) -> Iterator[SendingContext]:
        """Yield the context of a stream with limited writes.

        Args:
            context: of the call.
            caller: the tenant, certificate or network of the client.

        Raises:
            ResourceExhausted: reason 'TOO_MANY_STALLED', the caller does not read its other streams.
        """
        stalled = self._num_stalled.get(caller, 0)
        if stalled >= MAX_STALLED_PER_CALLER or (stalled and self._num_stalled.total() >= MAX_STALLED):
            raise ResourceExhausted(
                f"{stalled} responses wait to be read: read them or close their connection, then retry.",
                reason="TOO_MANY_STALLED",
                retry_after_s=_RETRY_S,
            )
        sending = SendingContext(context, caller, self._limit_s)
        try:
            yield sending
        finally:
            sending.close()

    @contextmanager
    def stalled(self, caller: str) -> Iterator[None]:
        """Count a stalled call while its status waits."""
        self._num_stalled[caller] += 1
        try:
            with STALLED_CALLS.track_inprogress():
                yield
        finally:
            self._num_stalled[caller] -= 1
            if not self._num_stalled[caller]:
                del self._num_stalled[caller]
