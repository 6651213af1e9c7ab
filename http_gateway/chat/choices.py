"""The calls of one chat completion, one for each choice."""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from chassis.errors import Internal
from chassis.request_id import bound_request_id
from http_gateway.door import Door
from http_gateway.wire.errors import translated
from tandem.v1 import gateway_pb2

Metadata = tuple[tuple[str, str], ...]
Response = gateway_pb2.GatewayGenerateResponse


class Choices:
    """Reads the answers to one request side by side.

    At most two messages of each choice wait here. The gateway waits while the client is slow. The end of the block
    cancels the calls that still run.
    """

    def __init__(
        self,
        door: Door,
        requests: Iterable[tuple[str, gateway_pb2.GatewayGenerateRequest]],
        metadata: Metadata,
    ) -> None:
        """Send the requests.

        Args:
            door: has the channel to the gateway.
            requests: id and request of each choice.
            metadata: key and pin of all calls.
        """
        self._calls: list[Any] = []
        for request_id, request in requests:
            with bound_request_id(request_id):  # the channel sends it
                self._calls.append(door.gateway.Generate(request, metadata=metadata))
        self._num_running = len(self._calls)
        self._queue: asyncio.Queue[tuple[int, Response | Exception | None]] = asyncio.Queue(2 * len(self._calls))
        self._finished: set[int] = set()
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        if len(self._calls) > 1:
            self._readers = [asyncio.create_task(self._forward(index)) for index in range(len(self._calls))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for reader in self._readers:
            reader.cancel()
        for call in self._calls:
            call.cancel()

    async def read(self) -> tuple[int, Response] | None:
        """Return the next message and the index of its choice.

        Returns None when all choices have ended.

        Raises:
            TandemError: a choice failed, or it ended without its last message.
        """
        if not self._readers:
            response = await self._read(0)
            return None if response is None else (0, response)
        while self._num_running:
            index, item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is not None:
                return index, item
            self._num_running -= 1
        return None

    async def _forward(self, index: int) -> None:
        """Put the messages of one choice into the queue."""
        item: Response | Exception | None
        while True:
            try:
                item = await self._read(index)
            except Exception as error:
                item = error
            await self._queue.put((index, item))
            if not isinstance(item, Response):
                return

    async def _read(self, index: int) -> Response | None:
        """Return the next message of a choice, if any."""
        with translated():
            response = await self._calls[index].read()
        if isinstance(response, Response):
            if response.HasField("finished"):
                self._finished.add(index)
            return response
        if index not in self._finished:
            raise Internal("The gateway ended the answer too early: try again.", reason="TRUNCATED_STREAM")
        return None
