"""Attack a gRPC server with large bodies on many connections.

Runs as a process of its own, so that its memory and time are not those of the server:

    python -m tests.hostile.flood --port 50050 --connections 200 --method /tandem.v1.Gateway/CountTokens

A connection calls the method again and again, and sends its body as fast as flow control allows. With --trickle it
withholds the last byte of each body and sends nothing more, so that the server waits for the rest.
"""

import argparse
import asyncio
import os
import struct
from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SETTING = 4
_FRAME_BYTES = 16_384
_LARGEST_WINDOW = 2**31 - 1


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data


@dataclass
class Attack:
    """One attack, as its flags say."""

    port: int
    connections: int
    streams: int  # at once on each connection
    method: str
    body_bytes: int
    host: str  # address of the attacker, one of 127.0.0.0/8
    key: str
    trickle: bool
    seconds: float

    @property
    def headers(self) -> bytes:
        """The header block of each call, in HPACK without compression."""
        headers = {":method": "POST", ":scheme": "http", ":path": self.method, ":authority": "localhost"}
        headers |= {"te": "trailers", "content-type": "application/grpc"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        return b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in headers.items())


@dataclass
class _Call:
    window: int
    rest: int  # bytes of the body still to send
    prefix: bytes


@dataclass
class Flood:
    """One hostile connection."""

    attack: Attack
    window: int = 65_535
    initial_window: int = 65_535
    calls: dict[int, _Call] = field(default_factory=dict)
    next_stream: int = 1
    num_ended: int = 0
    is_connected: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Attack until cancelled, on new connections if one is closed."""
        while True:
            try:
                await self._connect()
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.1)

    async def _connect(self) -> None:
        self.window = self.initial_window = 65_535
        self.calls, self.next_stream = {}, 1
        reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self.attack.port, local_addr=(self.attack.host, 0)
        )
        self.is_connected.set()
        try:
            self._writer.write(_PREFACE + _frame(_SETTINGS, 0, 0))
            self._writer.write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65_535)))
            while True:
                self._begin_calls()
                await self._send()
                length_kind, flags, stream = struct.unpack(">IBI", await reader.readexactly(9))
                self._handle(length_kind & 0xFF, flags, stream, await reader.readexactly(length_kind >> 8))
        finally:
            self._writer.close()

    def _begin_calls(self) -> None:
        while len(self.calls) < self.attack.streams:
            stream, self.next_stream = self.next_stream, self.next_stream + 2
            self._writer.write(_frame(_HEADERS, _END_HEADERS, stream, self.attack.headers))
            size = self.attack.body_bytes
            # The message is one field with the number 15, which no request has.
            prefix = struct.pack(">BI", 0, size)
            if size:
                self.calls[stream] = _Call(self.initial_window, size, prefix)
            else:  # it fits into any window
                self.calls[stream] = _Call(self.initial_window, 0, b"")
                self.window -= len(prefix)
                self._writer.write(_frame(_DATA, _END_STREAM, stream, prefix))

    async def _send(self) -> None:
        for stream, call in self.calls.items():
            withheld = 1 if self.attack.trickle else 0
            while (room := min(call.window, self.window, _FRAME_BYTES)) > len(call.prefix) and call.rest > withheld:
                num_bytes = min(room - len(call.prefix), call.rest - withheld)
                payload = call.prefix + bytes(num_bytes)
                call.prefix = b""
                call.rest -= num_bytes
                call.window -= len(payload)
                self.window -= len(payload)
                self._writer.write(_frame(_DATA, 0 if call.rest else _END_STREAM, stream, payload))
                await self._writer.drain()

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            settings = dict(struct.unpack(">HI", payload[at : at + 6]) for at in range(0, len(payload), 6))
            self.initial_window = settings.get(_INITIAL_WINDOW_SETTING, self.initial_window)
            self._writer.write(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self._writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            (increment,) = struct.unpack(">I", payload)
            if stream == 0:
                self.window += increment
            elif stream in self.calls:
                self.calls[stream].window += increment
        elif kind == _RST_STREAM or (kind == _HEADERS and flags & _END_STREAM):
            self.num_ended += self.calls.pop(stream, None) is not None
        elif kind == _GOAWAY:
            raise ConnectionResetError


async def _run(attack: Attack) -> None:
    floods = [Flood(attack) for _ in range(attack.connections)]
    tasks = [asyncio.create_task(flood.run()) for flood in floods]
    await asyncio.gather(*(flood.is_connected.wait() for flood in floods))
    print("all are connected", flush=True)
    await asyncio.wait(tasks, timeout=attack.seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(sum(flood.num_ended for flood in floods))


def main() -> None:
    """Attack, then print the number of ended calls."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--method", default="/tandem.v1.Gateway/CountTokens")
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--body-bytes", type=int, default=30 * 2**20)
    parser.add_argument("--host", default="127.0.0.2")
    parser.add_argument("--key", default="")
    parser.add_argument("--trickle", action="store_true")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--nice", type=int, default=0, help="priority, 19 is the lowest")
    arguments = vars(parser.parse_args())
    os.nice(arguments.pop("nice"))
    asyncio.run(_run(Attack(**arguments)))


if __name__ == "__main__":
    main()
