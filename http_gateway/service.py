"""Serve the application until SIGTERM, then drain."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import partial
from typing import Any

import structlog
import uvicorn

from chassis.channels import open_channel
from chassis.listening import cannot_listen
from chassis.metrics_server import serve_metrics
from chassis.network import split_address
from chassis.process import ProcessLife, left_within, within
from chassis.tls import server_context
from chassis.tracing import tracing
from http_gateway.app import create_app
from http_gateway.connections import Connection, ConnectionLimits
from http_gateway.door import Door, HttpSettings
from http_gateway.images import open_image_reader
from http_gateway.wire.bodies import BodyBudget

_SETTLE_S = 0.5  # shortest drain: balancers that ask /readyz leave
_UNWIND_S = 5.0  # longest wait for the end of cancelled requests
_STOP_HTTP_S = 5.0  # longest wait for uvicorn to end
_CLOSE_S = 5.0  # longest wait to close the gateway's channel and the reader of images
_OTHER_FILES = 256  # open files besides connections

_log = structlog.get_logger()


async def serve(settings: HttpSettings, life: ProcessLife) -> None:
    """Serve HTTP until a signal, then drain.

    Raises:
        FailedPrecondition: reason 'CANNOT_LISTEN' or 'BAD_TLS'.
    """
    _allow_files(settings.max_connections + _OTHER_FILES)
    with (
        tracing("http", settings.trace_endpoint, settings.trace_sample, settings.trace_peers),
        _listening(settings.listen) as listener,
    ):
        async with (
            serve_metrics(settings) as metrics_port,
            left_within(_CLOSE_S, "door", _open_door(settings)) as door,
        ):
            server = _Server(_config(door))
            serving = asyncio.create_task(server.serve([listener]))
            await _first(serving, server.has_started.wait(), timeout_s=None)
            if not serving.done():
                life.announce_ready(port=listener.getsockname()[1], metrics_port=metrics_port)
                await _first(serving, life.drain.wait(), timeout_s=None)
                _log.info("stopping", drain_s=settings.drain_s)
                await _stop(door, server, serving, life.stop_now)
            await within(_STOP_HTTP_S, "HTTP server", serving)


def _allow_files(num_files: int) -> None:
    """Raise the limit of open files, if allowed.

    Its usual 1024 would let slow clients keep others out before `max_connections` does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < num_files:
        most = num_files if hard == resource.RLIM_INFINITY else min(num_files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


@contextlib.asynccontextmanager
async def _open_door(settings: HttpSettings) -> AsyncIterator[Door]:
    channel = open_channel(
        settings.gateway,
        tls=settings.channel_tls,
        max_message_bytes=settings.max_message_bytes,
        watch_health=True,
    )
    bodies = BodyBudget(settings.max_bodies_bytes)
    images = open_image_reader(
        hosts=settings.image_hosts,
        networks=settings.image_networks,
        timeout_s=settings.image_timeout_s,
        max_bytes=settings.max_image_bytes,
        max_request_bytes=settings.max_body_bytes,
        budget=bodies,
    )
    async with channel, images as reader:
        yield Door(settings, channel, bodies, reader)


async def _stop(door: Door, server: "_Server", serving: "asyncio.Task[None]", stop_now: asyncio.Event) -> None:
    """Report not ready, refuse new connections, wait, cancel the rest."""
    drain_s = door.settings.drain_s
    door.draining = True
    await _first(serving, stop_now.wait(), timeout_s=min(drain_s, _SETTLE_S))
    server.should_exit = True
    await _first(serving, stop_now.wait(), timeout_s=drain_s)
    if not serving.done():
        door.cancel_requests()
        await _first(serving, timeout_s=_UNWIND_S)
        server.force_exit = True


async def _first(task: "asyncio.Task[None]", *others: Awaitable[Any], timeout_s: float | None) -> None:
    """Wait for the first, and cancel all but the task."""
    waiting = [asyncio.ensure_future(other) for other in others]
    await asyncio.wait({task, *waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the process."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.has_started = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()


def _config(door: Door) -> uvicorn.Config:
    settings = door.settings
    limits = ConnectionLimits(
        header_timeout_s=settings.header_timeout_s,
        body_timeout_s=settings.body_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
        max_body_bytes=settings.max_body_bytes,
        max_connections=settings.max_connections,
    )
    tls = server_context(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)
    options: dict[str, Any] = {"ssl_context_factory": lambda _config, _default: tls} if tls is not None else {}
    return uvicorn.Config(
        create_app(door),
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]  # called like a class
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # its warnings are about malformed requests, which anyone can send
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        **options,
    )


@contextlib.contextmanager
def _listening(listen: str) -> Iterator[socket.socket]:
    """Yield a bound socket.

    Raises:
        FailedPrecondition: reason 'CANNOT_LISTEN'.
    """
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise cannot_listen(listen, error, service="HTTP") from None
    with listener:
        yield listener
