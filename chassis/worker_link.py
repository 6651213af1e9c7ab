"""A worker's connection to its supervisor, see `chassis.workers`.

The worker says when it is ready, then that its event loop still turns. If the supervisor dies, the worker learns of it.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import structlog

BEAT_S = 1.0

_log = structlog.get_logger()


class WorkerLink:
    """The worker's end of a socket.

    A line is a JSON object with the fields of 'ready', an empty line a heartbeat.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over an inherited socket.

        Args:
            descriptor: its file descriptor.
        """
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)  # a child of the worker would keep it open

    def announce_ready(self, fields: Mapping[str, object]) -> None:
        """Tell the supervisor that the worker serves."""
        self._send(json.dumps(fields).encode() + b"\n")

    @asynccontextmanager
    async def kept(self, on_lost: Callable[[], object]) -> AsyncIterator[None]:
        """Send heartbeats from the event loop until the block ends.

        Args:
            on_lost: called once if the supervisor dies.
        """
        loop = asyncio.get_running_loop()
        beating = asyncio.create_task(self._beat())

        def read() -> None:
            with suppress(BlockingIOError, InterruptedError):
                if not self._receive():
                    loop.remove_reader(self._socket)
                    _log.error("supervisor is gone")
                    on_lost()

        loop.add_reader(self._socket, read)
        try:
            yield
        finally:
            beating.cancel()
            loop.remove_reader(self._socket)

    async def _beat(self) -> None:
        while True:
            self._send(b"\n")
            await asyncio.sleep(BEAT_S)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1)
        except ConnectionError:
            return b""

    def _send(self, line: bytes) -> None:
        # A supervisor that is stopped reads nothing, and one that died is noticed by `kept`.
        with suppress(OSError):
            self._socket.send(line)
