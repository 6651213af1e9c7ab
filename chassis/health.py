"""The process's answers to `grpc.health.v1` checks.

Names are '' for the whole process, 'tandem.v1.VisionService' for a service and '<service>/<tag>' for a model.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio  # type: ignore[attr-defined]  # missing from the published types

from chassis.listening import cannot_listen

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Serving status by name."""

    def __init__(self) -> None:
        self.servicer = aio.HealthServicer()

    async def set(self, name: str, serving: bool) -> None:
        """Set the status of `name`. Has no effect after `stop`."""
        await self.servicer.set(name, SERVING if serving else NOT_SERVING)

    async def stop(self) -> None:
        """Report NOT_SERVING for every name from now on."""
        await self.servicer.enter_graceful_shutdown()


@asynccontextmanager
async def serve_probes(health: Health, listen: str | None) -> AsyncIterator[int]:
    """Serve health checks alone until the block ends.

    It takes plain text, because a kubelet probes without TLS and keys. The
    process is NOT_SERVING from the start of the block until its server has
    started.

    Yields the port, or -1 without an address.

    Args:
        health: answers the checks.
        listen: 'host:port', port 0 picks a free one. None serves nothing.

    Raises:
        FailedPrecondition: reason 'CANNOT_LISTEN', for example if the port is in use.
    """
    await health.set("", serving=False)
    if listen is None:
        yield -1
        return
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        raise cannot_listen(listen, service="probes") from None
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
