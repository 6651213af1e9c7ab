"""A raw HTTP/2 client that breaks the customs of gRPC."""

import asyncio
import socket
import ssl
import struct
from types import TracebackType
from typing import Self

from google.protobuf.message import Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, ResponseReceived, StreamReset, TrailersReceived
from h2.settings import SettingCodes, Settings


class SilentReader:
    """Calls RPCs with a flow-control window, by default of 0.

    The server can then send headers, and no message.

    Attributes:
        answered: streams whose response headers have arrived.
        statuses: `grpc-status` by stream.
        ended: streams that the server has ended, all of them after the end of the connection.
    """

    def __init__(
        self, port: int, *, window: int = 0, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect to nothing yet.

        Args:
            port: of this machine.
            window: bytes of each stream that the server may send.
            source: address of the client, one of 127.0.0.0/8.
            tls: how to trust the server. None connects in the clear.
        """
        self.answered: set[int] = set()
        self.statuses: dict[int, str] = {}
        self.ended: set[int] = set()
        self._port = port
        self._source, self._tls = source, tls
        self._connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._connection.local_settings = Settings(
            client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self._open: set[int] = set()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(
            "localhost", self._port, local_addr=(self._source, 0), ssl=self._tls, family=socket.AF_INET
        )
        self._connection.initiate_connection()
        await self._flush()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reading.cancel()
        self._writer.close()

    async def call(self, method: str, request: Message) -> int:
        """Begin an RPC with one request. Return its stream."""
        stream = self._connection.get_next_available_stream_id()
        headers = [
            *((":method", "POST"), (":path", method), (":scheme", "http"), (":authority", "localhost")),
            *(("te", "trailers"), ("content-type", "application/grpc")),
        ]
        body = request.SerializeToString()
        self._connection.send_headers(stream, headers)
        self._connection.send_data(stream, struct.pack(">BI", 0, len(body)) + body, end_stream=True)
        self._open.add(stream)
        await self._flush()
        return stream

    async def _flush(self) -> None:
        self._writer.write(self._connection.data_to_send())
        await self._writer.drain()

    async def _read(self) -> None:
        while data := await self._reader.read(65536):
            for event in self._connection.receive_data(data):
                if isinstance(event, ResponseReceived | TrailersReceived):
                    self.answered.add(event.stream_id)
                    headers = {str(name): str(value) for name, value in event.headers}  # both decoded
                    if "grpc-status" in headers:
                        self.statuses[event.stream_id] = headers["grpc-status"]
                elif isinstance(event, StreamReset):
                    self.ended.add(event.stream_id)
                elif isinstance(event, ConnectionTerminated):
                    self.ended |= self._open
            await self._flush()
        self.ended |= self._open
