"""The least a gateway can be: one gRPC call in, one out, bytes passed on unread. What it adds is gRPC's own.

It takes the first message of a language call, sends it on with a prompt of forty tokens, and passes the answer back; no
checks, no text, no log, no metrics. `benchmarks.gateway_overhead` measures the real gateway beside it.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from chassis.channels import open_channel
from tandem.v1 import language_pb2

METHOD = "/benchmarks.Relay/Generate"
_LANGUAGE_METHOD = "/tandem.v1.LanguageService/Generate"
PROMPT = language_pb2.GenerateRequest(text=language_pb2.TextSegment(token_ids=range(40)))


class Relay(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    """Serves the one method."""

    def __init__(self, channel: Any) -> None:
        # Without serializers gRPC hands bytes through.
        self._generate: Any = channel.stream_stream(_LANGUAGE_METHOD)
        self._handler = grpc.unary_stream_rpc_method_handler(self._relay)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler."""
        return self._handler if handler_call_details.method == METHOD else None

    async def _relay(self, start: bytes, context: Any) -> AsyncIterator[bytes]:
        call = self._generate()
        await call.write(start)
        await call.write(PROMPT.SerializeToString())
        await call.done_writing()
        while response := await call.read():
            yield response


async def serve(listen: str, language: str) -> None:
    """Relay until the process ends."""
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", 10_000)])
    async with open_channel(language) as channel:
        server.add_generic_rpc_handlers((Relay(channel),))
        port = server.add_insecure_port(listen)
        await server.start()
        print(json.dumps({"event": "ready", "port": port}), flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Read the flags and serve; of those every service of a benchmark gets, only --listen counts."""
    parser = argparse.ArgumentParser(description="A gateway that does nothing.")
    parser.add_argument("--listen", required=True)
    parser.add_argument("--language", required=True)
    options, _ = parser.parse_known_args()
    uvloop.run(serve(options.listen, options.language))


if __name__ == "__main__":
    main()
