"""Real servers on loopback, made of single handlers, and channels to them."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from chassis.channels import ChannelTls, open_channel
from chassis.logs import configure_logging
from chassis.server import Server
from chassis.settings import ServiceSettings
from tandem.v1 import gateway_pb2_grpc, language_pb2_grpc, vision_pb2_grpc

Handlers = dict[str, Callable[..., Any]]


@dataclass
class Running:
    """A server that runs, and stubs of a channel to it."""

    server: Server
    channel: grpc.aio.Channel
    gateway: Any
    language: Any
    vision: Any


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Return `serve(gateway={"Generate": handler}, language=..., vision=..., settings=..., tls=...)`.

    Handlers are written as methods; all three services are there, whatever is not given is UNIMPLEMENTED.
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


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Log as JSON, and yield a function that gives the lines so far."""
    stderr, root = io.StringIO(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("test", "json", "debug")
    yield lambda: [json.loads(line) for line in stderr.getvalue().splitlines()]
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@dataclass(frozen=True)
class Certificates:
    """PEM files: one authority, a server certificate for localhost and a client certificate, and a stranger's."""

    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    other_ca: Path
    stranger: tuple[Path, Path]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    ca, other = _authority(folder, "ca"), _authority(folder, "other")
    return Certificates(
        ca=ca[0],
        server=_signed(folder, "server", ca),
        client=_signed(folder, "client", ca),
        other_ca=other[0],
        stranger=_signed(folder, "stranger", other),
    )


def _authority(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl("req", "-x509", *_NEW_KEY, "-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-days", "2")
    return cert, key


def _signed(folder: Path, name: str, authority: tuple[Path, Path]) -> tuple[Path, Path]:
    cert, key, request, names = (folder / f"{name}.{ending}" for ending in ("pem", "key", "csr", "ext"))
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    signing = ("-CA", authority[0], "-CAkey", authority[1], "-CAcreateserial", "-days", "2", "-extfile", names)
    _openssl("x509", "-req", "-in", request, "-out", cert, *signing)
    return cert, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
