"""Refuse all calls in a bare gRPC server.

    python -m tests.hostile.sink

prints its port. It does the least that a gRPC server in Python can do for a call: no interceptor, no key, no log line,
and nothing is read. `tests.hostile.door` aims a flood at it, so that a flood can be measured beside the gateway.
"""

import asyncio
from typing import Any

import grpc


async def _refuse(_requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "No.")


class _RefuseAll(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    # A stream, so that gRPC does not receive the message before the call is refused.
    _handler = grpc.stream_unary_rpc_method_handler(_refuse)

    def service(self, _details: grpc.HandlerCallDetails) -> Any:
        return self._handler


async def _serve() -> None:
    server = grpc.aio.server(handlers=[_RefuseAll()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Serve until the process is killed."""
    asyncio.run(_serve())


if __name__ == "__main__":
    main()
