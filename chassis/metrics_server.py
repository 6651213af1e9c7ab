"""Serve the process's metrics over HTTP, on its event loop.

The number and the life of connections are bounded, so that no client can keep Prometheus out.
"""

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from chassis.api_keys import api_key_of
from chassis.errors import FailedPrecondition, Unauthenticated
from chassis.listening import cannot_listen
from chassis.network import join_address
from chassis.settings import ProcessSettings
from chassis.tls import server_context

MAX_CONNECTIONS = 16  # the oldest one makes room for another
CONNECTION_S = 10.0  # longest life of a connection: one request and its response
_MIN_TOKEN_BYTES = 16

Send = Callable[[dict[str, Any]], Awaitable[None]]


@asynccontextmanager
async def serve_metrics(settings: ProcessSettings) -> AsyncIterator[int]:
    """Serve `http://host:port/metrics` until the block ends.

    Yields the port, or -1 if metrics are off.

    Raises:
        FailedPrecondition: reason 'CANNOT_LISTEN', for example if the port is in use, 'BAD_TLS', or 'BAD_TOKEN'.
    """
    host, port = settings.metrics_host, settings.metrics_port
    if port < 0:
        yield -1
        return
    tls = server_context(cert=settings.tls_cert, key=settings.tls_key, client_ca=None) if settings.metrics_tls else None
    config = uvicorn.Config(
        _MetricsPage(_token_digest(settings.metrics_token)),
        http="h11",  # bounds the headers
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # its warnings are about malformed requests, which anyone can send
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    connections = _Connections()
    try:
        server = await asyncio.get_running_loop().create_server(
            partial(_Connection, config, connections),
            host,
            port,
            ssl=tls,
            ssl_handshake_timeout=CONNECTION_S if tls is not None else None,
        )
    except OSError as error:
        raise cannot_listen(join_address(host, port), error, service="metrics") from None
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        connections.abort()


class _Connections:
    """The open connections, the oldest first."""

    def __init__(self) -> None:
        self.state = ServerState()
        self._transports: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def add(self, transport: asyncio.Transport) -> None:
        """Add a connection, and end the oldest of too many."""
        if len(self._transports) >= MAX_CONNECTIONS:
            oldest = next(iter(self._transports))
            self.remove(oldest)
            oldest.abort()
        timer = asyncio.get_running_loop().call_later(CONNECTION_S, transport.abort)
        self._transports[transport] = timer

    def remove(self, transport: asyncio.Transport) -> None:
        """Forget a connection that has ended."""
        timer = self._transports.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def abort(self) -> None:
        """End them all."""
        for transport in list(self._transports):
            transport.abort()


class _Connection(H11Protocol):
    """uvicorn's connection, whose life is bounded."""

    def __init__(self, config: uvicorn.Config, connections: _Connections) -> None:
        super().__init__(config, connections.state, {})
        self._connections = connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place among the connections."""
        super().connection_made(transport)
        self._connections.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Free the place."""
        self._connections.remove(self.transport)
        super().connection_lost(exc)


class _MetricsPage:
    """The application: one page, for those who know the token."""

    def __init__(self, token_digest: bytes | None) -> None:
        self._token_digest = token_digest
        self._rendering = asyncio.Lock()  # one page at a time, so that readers do not take the threads of others

    async def __call__(self, scope: dict[str, Any], _receive: object, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._is_allowed(headers):
            await _respond(send, 401, "text/plain; charset=utf-8", b"Send the token of --metrics-token.\n")
            return
        if scope["path"] not in ("/", "/metrics"):
            await _respond(send, 404, "text/plain; charset=utf-8", b"The metrics are at /metrics.\n")
            return
        encode, content_type = choose_encoder(headers.get("accept", ""))
        async with self._rendering:
            page = await asyncio.to_thread(encode, REGISTRY)
        await _respond(send, 200, content_type, page)

    def _is_allowed(self, headers: dict[str, str]) -> bool:
        if self._token_digest is None:
            return True
        try:
            token = api_key_of(headers.items())
        except Unauthenticated:
            return False
        return hmac.compare_digest(_digest(token), self._token_digest)


async def _respond(send: Send, status: int, content_type: str, body: bytes) -> None:
    # Each request has its own connection, so an idle one keeps no place.
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _token_digest(path: Path | None) -> bytes | None:
    """Return the digest of the token in a file.

    Raises:
        FailedPrecondition: reason 'BAD_TOKEN'.
    """
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise FailedPrecondition("The file of --metrics-token cannot be read.", reason="BAD_TOKEN") from None
    if len(token) < _MIN_TOKEN_BYTES:
        raise FailedPrecondition(
            f"The token of --metrics-token is too short: give at least {_MIN_TOKEN_BYTES} characters.",
            reason="BAD_TOKEN",
        )
    return _digest(token)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
