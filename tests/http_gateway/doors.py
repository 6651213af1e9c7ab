"""Run the HTTP door inside a test's event loop."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from chassis.process import ProcessLife
from http_gateway.door import HttpSettings
from http_gateway.service import serve

CHAT = "/v1/chat/completions"
# Beginnings of requests as bytes. More headers and an empty line follow.
GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"
POST = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()


class Life(ProcessLife):
    """A process's life that tests decide instead of signals."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.has_failed = False
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def announce_ready(self, **fields: object) -> None:
        self.ready.set_result(fields)


@dataclass
class RunningDoor:
    """A door that serves, and a client of it."""

    port: int
    life: Life
    client: httpx2.AsyncClient
    serving: asyncio.Task[None]

    async def chat(self, content: str | list[Any] = "Hello?", **fields: Any) -> httpx2.Response:
        """Post a chat completion with one message."""
        headers = fields.pop("headers", {})
        return await self.client.post(CHAT, json=question(content, **fields), headers=headers)

    async def events(self, content: str = "Hello?", **fields: Any) -> "Events":
        """Read a streamed chat completion to its end."""
        headers = fields.pop("headers", {})
        async with self.client.stream(
            "POST", CHAT, json=question(content, stream=True, **fields), headers=headers
        ) as response:
            events = Events(response.status_code, dict(response.headers))
            async for line in response.aiter_lines():
                if line:
                    events.add(line)
        return events


@dataclass
class Events:
    """A streamed answer."""

    status: int
    headers: dict[str, str]
    chunks: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False

    def add(self, line: str) -> None:
        data = line.removeprefix("data: ")
        assert data != line, f"not an event: {line}"
        assert not self.is_done, "an event after the last one"
        if data == "[DONE]":
            self.is_done = True
        else:
            self.chunks.append(json.loads(data))

    def text(self, index: int = 0) -> str:
        """Return the text of one choice."""
        deltas = [choice for chunk in self.chunks for choice in chunk.get("choices", ()) if choice["index"] == index]
        return "".join(choice["delta"].get("content") or "" for choice in deltas)


def question(content: str | list[Any], **fields: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    return {"messages": [{"role": "user", "content": content}], **fields}


@asynccontextmanager
async def running_door(gateway: str, **fields: Any) -> AsyncIterator[RunningDoor]:
    """Run a door in front of a gateway.

    Args:
        gateway: host:port.
        fields: settings of the door.
    """
    settings = HttpSettings(**{"listen": "127.0.0.1:0", "gateway": gateway, "metrics_port": -1, "drain_s": 0, **fields})
    life = Life()
    serving = asyncio.create_task(serve(settings, life))
    starting: set[asyncio.Future[Any]] = {serving, life.ready}
    await asyncio.wait(starting, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    port = life.ready.result()["port"]
    scheme = "https" if settings.tls_cert else "http"
    try:
        async with httpx2.AsyncClient(base_url=f"{scheme}://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield RunningDoor(port, life, client, serving)
    finally:
        life.drain.set()
        life.stop_now.set()
        await serving


async def exchange(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send raw bytes, and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def status_of(answer: bytes) -> int:
    """Return the status of a raw response."""
    return int(answer.split(b" ")[1])
