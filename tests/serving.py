"""Serve single handlers on a real server, with client stubs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from chassis.channels import ChannelTls, open_channel
from chassis.server import Server
from chassis.settings import ServiceSettings
from tandem.v1 import gateway_pb2_grpc, language_pb2_grpc, vision_pb2_grpc

Handlers = dict[str, Callable[..., Any]]


@dataclass
class Running:
    """A running server, a channel to it and stubs."""

    server: Server
    channel: grpc.aio.Channel
    gateway: Any
    language: Any
    vision: Any


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Return `serve(gateway={"Generate": handler}, language=..., vision=..., settings=..., tls=...)`.

    Handlers are methods, with `self` as their first parameter. Methods without a handler are UNIMPLEMENTED.
    """
    async with AsyncExitStack() as stack:

        async def start(
            *,
            gateway: Handlers | None = None,
            language: Handlers | None = None,
            vision: Handlers | None = None,
            settings: ServiceSettings | None = None,
            tls: ChannelTls | None = None,
        ) -> Running:
            server = Server(settings or ServiceSettings())
            _add(gateway_pb2_grpc, "Gateway", gateway, server)
            _add(language_pb2_grpc, "LanguageService", language, server)
            _add(vision_pb2_grpc, "VisionService", vision, server)
            await server.start()
            stack.push_async_callback(server.stop, 0)
            channel = await stack.enter_async_context(open_channel(f"localhost:{server.port}", tls=tls))
            stubs = [gateway_pb2_grpc.GatewayStub, language_pb2_grpc.LanguageServiceStub]
            return Running(server, channel, *(stub(channel) for stub in (*stubs, vision_pb2_grpc.VisionServiceStub)))

        yield start


def _add(module: Any, service: str, handlers: Handlers | None, server: Server) -> None:
    servicer = type(service, (getattr(module, f"{service}Servicer"),), handlers or {})
    getattr(module, f"add_{service}Servicer_to_server")(servicer(), server.grpc)
    server.announce(f"tandem.v1.{service}")
