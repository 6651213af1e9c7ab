"""HTTP/1.1 connections that no slow or endless client can hold."""

import asyncio
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from chassis.errors import InvalidArgument, TandemError, Unavailable
from http_gateway.wire.bodies import DISCARDED_BYTES
from http_gateway.wire.errors import error_body
from http_gateway.wire.json_text import encode

MAX_HEADER_BYTES = 64 * 2**10
# Chunked bodies have more bytes on the wire than in the request: sizes of chunks, extensions and trailers.
_MAX_WIRE_RATIO = 2
_TOO_LARGE = "The headers are larger than 64 KiB: send fewer of them."
_TOO_SLOW = "The headers did not arrive in time: send the request again."


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits of one connection."""

    header_timeout_s: float  # from the first byte of a request, or from the connection, to the end of its headers
    body_timeout_s: float  # for the rest of a body that nobody reads any more
    stall_timeout_s: float  # in which the client reads nothing while a response waits
    max_body_bytes: int
    max_connections: int  # of the process


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits.

    uvicorn itself waits forever for headers and for a client that does not read, and bounds neither headers nor
    trailers. Its parser refuses a request with two lengths or with both forms of length, so that no proxy can read it
    in another way.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._in_headers = True
        self._num_wire_bytes = 0  # of the current request
        self._header_timer: asyncio.TimerHandle | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(503, Unavailable("There are too many connections: retry later.", reason="CONNECTIONS_BUSY"))
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        for timer in (self._header_timer, self._body_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, unless they are too many."""
        self._num_wire_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self.transport.is_closing():
            return
        if self._in_headers:
            if self._num_wire_bytes > MAX_HEADER_BYTES:
                self._refuse(431, InvalidArgument(_TOO_LARGE, reason="HEADERS_TOO_LARGE"))
        elif self._num_wire_bytes > _MAX_WIRE_RATIO * self._limits.max_body_bytes + DISCARDED_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Start the time for the headers of a request."""
        super().on_message_begin()
        self._await_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and drop a trailer.

        uvicorn would add trailers to the headers, past a proxy that checks those.
        """
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless `_parse` repeats it."""
        self._in_headers = False
        self._stop_header_timer()
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._in_headers = True
        self._num_wire_bytes = 0
        if self._body_timer is not None:
            self._body_timer.cancel()

    def on_response_complete(self) -> None:
        """Bound the time for the rest of a refused body."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._body_timer = self.loop.call_later(self._limits.body_timeout_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP/1.1."""
        self._refuse(400, InvalidArgument("The request is not valid HTTP/1.1.", reason="BAD_REQUEST"))

    def pause_writing(self) -> None:
        """Start the time in which the client must read."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._limits.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client reads."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()

    def _parse(self, data: bytes) -> None:
        """Parse bytes, and ignore an offer of another protocol.

        The parser takes all that follows such a request's headers for the other protocol, its body too. So the request
        is parsed again without the offer.
        """
        rest: bytes | memoryview = data
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserError:
                self.send_400_response("")
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self._refuse(405, InvalidArgument("This server is no proxy.", reason="METHOD_NOT_ALLOWED"))
                    return
                rest = memoryview(rest)[upgrade.args[0] :]  # without a copy: there can be thousands in these bytes
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)
                continue
            return

    def _head_without_offer(self) -> bytes:
        """Return the bytes of the current headers, without an upgrade."""
        tokens = b",".join(value for name, value in self.headers if name == b"connection").lower()
        kept = [(name, value) for name, value in self.headers if name not in (b"connection", b"upgrade")]
        if b"close" in [token.strip() for token in tokens.split(b",")]:
            kept.append((b"connection", b"close"))
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        return b"\r\n".join([*lines, *(name + b": " + value for name, value in kept), b"", b""])

    def _await_headers(self) -> None:
        self._in_headers = True
        self._stop_header_timer()
        self._header_timer = self.loop.call_later(self._limits.header_timeout_s, self._headers_late)

    def _headers_late(self) -> None:
        self._refuse(408, InvalidArgument(_TOO_SLOW, reason="HEADER_TIMEOUT"))

    def _refuse(self, status: int, error: TandemError) -> None:
        """Answer outside the application, and close.

        Within a response, only close: the bytes would become part of it.
        """
        if self.cycle is None or self.cycle.response_complete:
            body = encode(error_body(error))
            head = f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
