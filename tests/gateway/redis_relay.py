"""A TCP relay before several Redis servers.

As a proxy or a virtual address, it leads new connections to its target, and keeps the old ones where they are. So after
a failover a client can go on talking to the server that lost its role.
"""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.gateway.redis_server import RedisServer


@dataclass(eq=False)
class _Connection:
    client: asyncio.StreamWriter
    upstream: asyncio.StreamWriter
    replies: asyncio.Task[None]


class RedisRelay:
    """Relays connections to `target`. An async context manager."""

    def __init__(self, target: RedisServer) -> None:
        self.target = target
        self.num_connections = 0  # that clients have opened so far
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return self.target.url_at(self._server.sockets[0].getsockname()[1])

    async def move_upstreams(self) -> None:
        """Lead the open connections to the target too.

        It has not seen their AUTH, and the clients notice nothing.
        """
        for connection in self._connections:
            connection.replies.cancel()
            connection.upstream.close()
            connection.upstream, connection.replies = await self._open(connection.client)

    async def _open(self, client: asyncio.StreamWriter) -> tuple[asyncio.StreamWriter, asyncio.Task[None]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target.port)

        async def copy() -> None:
            while data := await reader.read(2**16):
                client.write(data)

        return writer, asyncio.create_task(copy())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        connection = _Connection(writer, *await self._open(writer))
        self._connections.add(connection)
        try:
            while data := await reader.read(2**16):
                connection.upstream.write(data)
        except OSError:
            pass  # the client left
        finally:
            self._connections.discard(connection)
            connection.replies.cancel()
            connection.upstream.close()
            writer.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.client.close()
        while self._connections:  # noqa: ASYNC110  (each handler ends on its own)
            await asyncio.sleep(0.01)
