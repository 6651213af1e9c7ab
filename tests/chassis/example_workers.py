"""A service in two workers: `python -m tests.chassis.example_workers FLAGS...`."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from pydantic_settings import SettingsConfigDict

from chassis.errors import FailedPrecondition
from chassis.server import Server, run_service
from chassis.settings import ServiceSettings, load_settings
from chassis.worker_link import WorkerLink
from chassis.workers import run_workers
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

NUM_WORKERS = 2


class Settings(ServiceSettings):
    """Serves examples in two processes."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_EXAMPLE_")

    hang_s: float = 60
    start: str = "well"


class Servicer(gateway_pb2_grpc.GatewayServicer):
    """Streams its process id the requested number of times."""

    async def Generate(  # noqa: N802
        self, request: gateway_pb2.GatewayGenerateRequest, context: Any
    ) -> AsyncIterator[gateway_pb2.GatewayGenerateResponse]:
        """Answer, or hang with the whole event loop."""
        if request.routing_key == "hang":
            time.sleep(3600)  # noqa: ASYNC251
        for _ in range(int(request.routing_key)):
            yield gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text=str(os.getpid())))
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_service(settings: Settings, server: Server) -> AsyncIterator[None]:
    if settings.start == "refused":
        raise FailedPrecondition("The model does not fit.", reason="DOES_NOT_FIT")
    if settings.start == "slowly":
        structlog.get_logger().info("loading")
        await asyncio.sleep(3600)
    gateway_pb2_grpc.add_GatewayServicer_to_server(Servicer(), server.grpc)  # type: ignore[abstract]
    server.announce("tandem.v1.Gateway")
    yield


def main() -> None:
    first, *rest = sys.argv[1:]
    if first.isdigit():  # a worker
        run_service("example", load_settings(Settings, rest), open_service, WorkerLink(int(first)))
        return
    settings = load_settings(Settings, sys.argv[1:])
    run_workers(
        "example",
        settings,
        "tests.chassis.example_workers",
        NUM_WORKERS,
        lambda _index, addresses: [*sys.argv[1:], *addresses],
        hang_s=settings.hang_s,
    )


if __name__ == "__main__":
    main()
