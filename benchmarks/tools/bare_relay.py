"""A minimal gateway, as the lower limit of gRPC overhead.

It receives the only message of a language call, forwards it, and passes the answer back, all as bytes. It has no
checks, no detokenizer, no logs and no metrics. `benchmarks.gateway_overhead` compares the real gateway with it.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from chassis.channels import open_channel

METHOD = "/benchmarks.Relay/Generate"
LANGUAGE_METHOD = "/tandem.v1.LanguageService/Generate"


class Relay(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    """Serves the relay's only method."""

    def __init__(self, channel: Any) -> None:
        # Without serializers, gRPC passes messages as bytes.
        self._generate: Any = channel.unary_stream(LANGUAGE_METHOD)
        self._handler = grpc.unary_stream_rpc_method_handler(self._relay)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of the method."""
        return self._handler if handler_call_details.method == METHOD else None

    async def _relay(self, prompt: bytes, context: Any) -> AsyncIterator[bytes]:
        call = self._generate(prompt)
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
    """Serve until the process ends."""
    parser = argparse.ArgumentParser(description="Serve a minimal gateway that only relays bytes.")
    parser.add_argument("--listen", required=True, help="HOST:PORT to serve on")
    parser.add_argument("--language", required=True, help="HOST:PORT of the language service")
    # `running` passes flags for real services, which the relay ignores.
    options, _ = parser.parse_known_args()
    uvloop.run(serve(options.listen, options.language))


if __name__ == "__main__":
    main()
