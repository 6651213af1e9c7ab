"""The life of a process that serves: start, ready, drain, stop."""

import asyncio
import gc
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TypeVar

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from chassis.errors import FailedPrecondition, TandemError
from chassis.health import Health
from chassis.interceptor import CallInterceptor, CallsInFlight
from chassis.logs import configure_logging
from chassis.metrics import TASKS, metrics_over_http
from chassis.network import split_address
from chassis.settings import ServiceSettings
from chassis.tls import server_credentials
from chassis.tracing import tracing

# After the last handler returned, how long its status may take to leave, and open health watches may stay, seconds.
_FLUSH_S = 0.5
# How long cancelled handlers may take to run their `finally`, seconds.
_UNWIND_S = 5.0

_log = structlog.get_logger()
# For the one line logged whatever the level: who started the process waits for it, and learns the ports from it.
_always = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))


class Server:
    """A gRPC server with health, reflection, and around every call what `chassis.interceptor` does."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.health = Health()
        self.port = 0  # known once it is listening
        self.metrics_port = -1  # -1 while there are none
        self._settings = settings
        self._in_flight = CallsInFlight()
        self._service_names: list[str] = []
        self.grpc: grpc.aio.Server = grpc.aio.server(
            interceptors=[CallInterceptor(self._in_flight)], options=_options(settings)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self.grpc)

    def announce(self, service_name: str) -> None:
        """Name a service, 'tandem.v1.VisionService', to reflection and health; it is healthy once the server is up."""
        self._service_names.append(service_name)

    async def start(self) -> None:
        """Listen, and tell that every announced service takes requests.

        Raises:
            FailedPrecondition: reason 'CANNOT_LISTEN', the address is taken or not of this machine; or 'BAD_TLS'.
        """
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        names = (*self._service_names, health_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.grpc)
        settings = self._settings
        credentials = server_credentials(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)
        listen = self._settings.listen
        try:
            if credentials is None:
                self.port = self.grpc.add_insecure_port(listen)
            else:
                self.port = self.grpc.add_secure_port(listen, credentials)
        except RuntimeError:
            raise FailedPrecondition(f"Cannot listen on {listen}.", reason="CANNOT_LISTEN") from None
        await self.grpc.start()
        for name in ("", *self._service_names):
            await self.health.set(name, serving=True)

    async def stop(self, drain_s: float, at_once: asyncio.Event | None = None) -> None:
        """Tell that nothing takes requests, refuse new ones, let running ones end, then cancel the rest.

        Args:
            drain_s: longest wait for running requests, seconds.
            at_once: ends the wait when it is set.
        """
        self._in_flight.refusing = True
        await self.health.stop()
        hurry = asyncio.create_task((at_once or asyncio.Event()).wait())
        last = asyncio.create_task(self._in_flight.none_left.wait())
        # gRPC's own drain is not begun before: it cancels a call that arrives just then, where we refuse it in words.
        await asyncio.wait({hurry, last}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        ended = last.done() and not hurry.done()
        for task in (hurry, last):
            task.cancel()
        await self.grpc.stop(_FLUSH_S if ended else None)
        # What handlers hold is theirs to free, before the service closes what they hold it from.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._in_flight.none_left.wait(), _UNWIND_S)


S = TypeVar("S", bound=ServiceSettings)
OpenService = Callable[[S, Server], AbstractAsyncContextManager[None]]


def run_service(name: str, settings: S, open_service: OpenService[S]) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain; the whole life of a process.

    The first signal drains, a second one cancels what still runs, a third one is left to the system.

    Args:
        name: what the process is called in its log.
        settings: what it was told.
        open_service: adds the servicers to the server, loads what they need, and frees it when it is left.

    Exits with status 1, after one line in the log, where the service could not start.
    """
    configure_logging(name, settings.log_format, settings.log_level)
    try:
        uvloop.run(_serve(name, settings, open_service))
    except asyncio.CancelledError:
        _log.info("stopped before it was ready")
    except TandemError as error:
        _log.error("cannot start", reason=error.reason, error=error.local_message)
        raise SystemExit(1) from None
    except Exception:
        _log.exception("cannot start")
        raise SystemExit(1) from None


async def _serve(name: str, settings: S, open_service: OpenService[S]) -> None:
    signals = _Signals()
    loop = asyncio.get_running_loop()
    TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    server = Server(settings)
    host, _port = split_address(settings.listen)
    with (
        tracing(name, settings.trace_endpoint, settings.trace_sample),
        metrics_over_http(host, settings.metrics_port) as server.metrics_port,
    ):
        async with open_service(settings, server):
            await server.start()
            # What is here now lives as long as the process. Looked through again, which the collector does every few
            # thousand requests, it would hold up all streams at once for tens of milliseconds.
            gc.collect()
            gc.freeze()
            signals.ready = True
            _always.info("ready", port=server.port, metrics_port=server.metrics_port)
            await signals.first.wait()
            _log.info("stopping", drain_s=settings.drain_s)
            await server.stop(settings.drain_s, at_once=signals.second)
    _log.info("stopped")


class _Signals:
    """What SIGTERM and Ctrl-C ask for: the first to drain, the second to stop at once, the third is the system's."""

    def __init__(self) -> None:
        self.ready = False  # until then there is nothing to drain, and a signal cancels the start
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._starting = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        if self.ready and not self.first.is_set():
            self.first.set()
            return
        self.second.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        if not self.ready and self._starting is not None:
            self._starting.cancel()


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second process on the same port takes half of the first one's calls
        # gRPC's own limit, 100 a connection, has further calls wait where nobody sees them; ours are refused in words.
        ("grpc.max_concurrent_streams", 10_000),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the receiver says what is too large
        # A caller that vanished without a word is noticed within 30 s, and what its calls hold is freed.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # our own channels ping every 20 s
    ]
