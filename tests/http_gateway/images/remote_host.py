"""A host of remote images, and a fetcher for it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from http_gateway.images.hosts import ImageHosts
from http_gateway.images.remote import RemoteImages
from http_gateway.wire.bodies import BodyBudget

LIMIT = 1000
IMAGE = bytes(range(256)) * 3
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Host:
    """A host that answers by path: bytes, or a handler."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self.handlers: dict[str, Handler] = {}
        self.requests: list[bytes] = []
        self.num_open = 0
        self.port = 0

    def url(self, path: str, host: str = "img.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head)
                path = head.split()[1].decode()
                if path in self.handlers:
                    await self.handlers[path](reader, writer)
                writer.write(self.answers.get(path, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.num_open -= 1
            writer.close()


@asynccontextmanager
async def running(tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    host = Host()
    server = await asyncio.start_server(host, "127.0.0.1", 0, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    async with server:
        yield host


@dataclass
class Fetcher:
    """Fetches each image as a request of its own."""

    remote: RemoteImages

    async def fetch(self, url: str, field: str) -> bytes:
        with self.remote.allowance() as allowance:
            return await self.remote.fetch(url, field, allowance)

    async def fetch_many(self, url: str, number: int) -> None:
        """Fetch an image several times for one request."""
        with self.remote.allowance() as allowance:
            for _ in range(number):
                await self.remote.fetch(url, "f", allowance)


@asynccontextmanager
async def fetching(
    *hosts: str, networks: tuple[str, ...] = ("127.0.0.0/8",), timeout_s: float = 20, **more: Any
) -> AsyncIterator[Fetcher]:
    limits: dict[str, Any] = {"budget": BodyBudget(10_000), "max_bytes": LIMIT, "max_request_bytes": 10_000, **more}
    images = RemoteImages(ImageHosts(hosts, networks), timeout_s=timeout_s, **limits)
    try:
        yield Fetcher(images)
    finally:
        await images.close()


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
