"""A minimal client of streamed chat completions.

It reads as little as it can, so that a benchmark measures the server and not the client. Connections are kept alive,
and the one that was idle longest is used first, so that the server closes none.
"""

import asyncio
import json
import time
from typing import Any

CHAT = "/v1/chat/completions"


class HttpStreams:
    """A pool of connections to one HTTP door."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def first_token_s(self, body: dict[str, Any]) -> float:
        """Return the time to the first event of an answer.

        Raises:
            RuntimeError: the status is not 200.
        """
        reader, writer = self._idle.pop(0) if self._idle else await asyncio.open_connection(*self._address)
        content = json.dumps({**body, "stream": True}).encode()
        started = time.perf_counter()
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"the HTTP door refused: {head.decode()}")
        first_s = 0.0
        while num_bytes := int(await reader.readline(), 16):
            await reader.readexactly(num_bytes + 2)
            first_s = first_s or time.perf_counter() - started
        await reader.readline()
        self._idle.append((reader, writer))
        return first_s

    def close(self) -> None:
        """Close all connections."""
        for _, writer in self._idle:
            writer.close()
