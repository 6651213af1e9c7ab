"""Limit writes to clients that do not read."""

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest

from chassis.errors import ResourceExhausted
from chassis.sending import MAX_STALLED_PER_CALLER, STALLED_CALLS, ClientStalled, Sending

LIMIT_S = 0.05


class Context:
    """A client that reads while `reads` is set."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.written: list[Any] = []

    async def write(self, message: Any) -> None:
        await self.reads.wait()
        self.written.append(message)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


async def test_a_write_that_nobody_reads_ends() -> None:
    with Sending(LIMIT_S).open(Context(), "acme") as context:
        assert context.peer() == "ipv4:127.0.0.1:1"
        with pytest.raises(ClientStalled, match=r"read nothing for 0\.05 s") as caught:
            await context.write("answer")
    assert (caught.value.reason, caught.value.caller) == ("CLIENT_STALLED", "acme")


async def test_only_the_time_of_one_write_counts() -> None:
    client = Context()
    client.reads.set()
    with Sending(LIMIT_S).open(client, "acme") as context:
        for number in range(4):
            await context.write(number)
            await asyncio.sleep(LIMIT_S)
        client.reads.clear()
        late = asyncio.create_task(context.write(4))
        with pytest.raises(ClientStalled):
            await late
    assert client.written == [0, 1, 2, 3]


async def test_a_cancelled_write_has_not_stalled() -> None:
    with Sending(60).open(Context(), "acme") as context:
        writing = asyncio.create_task(context.write("answer"))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing


def test_a_caller_with_many_stalled_calls_begins_no_other_stream() -> None:
    sending, before = Sending(LIMIT_S), STALLED_CALLS._value.get()
    with ExitStack() as calls:
        for _ in range(MAX_STALLED_PER_CALLER):
            calls.enter_context(sending.stalled("acme"))
        assert STALLED_CALLS._value.get() == before + MAX_STALLED_PER_CALLER
        with pytest.raises(ResourceExhausted) as caught, sending.open(Context(), "acme"):
            pass
        assert caught.value.reason == "TOO_MANY_STALLED"
        with sending.open(Context(), "other"):
            pass
    with sending.open(Context(), "acme"):
        pass
    assert STALLED_CALLS._value.get() == before
