"""Run a gRPC server process: start, ready, drain, stop."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.health import Health, serve_probes
from chassis.interceptor import CallInterceptor, CallsInFlight
from chassis.listening import cannot_listen
from chassis.metrics_server import serve_metrics
from chassis.open_files import allow_connections
from chassis.process import ProcessLife, left_within, run_process, within
from chassis.reflection import add_reflection
from chassis.request_reader import CheckCaller, RequestReaders
from chassis.sending import Sending
from chassis.settings import ServiceSettings
from chassis.tls import server_credentials
from chassis.tracing import tracing
from chassis.worker_link import WorkerLink

_FLUSH_S = 0.5  # grace period after the last handler, to send its status and close open health watches
_SETTLE_S = 0.5  # shortest drain: clients that watch the health leave, and their last RPCs get a reason
_AGE_GRACE_S = (
    90_000  # for RPCs on a connection that is too old: longer than the longest deadline of a gateway, one day
)
_HANDSHAKE_S = 10  # for TLS and the first frames of HTTP/2
_UNWIND_S = 5.0  # longest wait for the `finally` blocks of cancelled handlers
_STOP_GRPC_S = 5.0  # longest wait for gRPC to end its connections
_CLOSE_S = 10.0  # longest wait for the service to free its models

_log = structlog.get_logger()


class Server:
    """gRPC server with health checks, reflection and `chassis.interceptor`."""

    def __init__(self, settings: ServiceSettings, *, shares_port: bool = False) -> None:
        """Listen nowhere yet.

        Args:
            settings: of the process.
            shares_port: whether other processes of this service listen on the same port.
        """
        self.health = Health()
        self.port = 0  # set by `start`
        self.metrics_port = -1  # -1 means off
        self._settings = settings
        self._in_flight = CallsInFlight()
        self._service_names: list[str] = []
        self._readers = RequestReaders(
            max_message_bytes=settings.max_message_bytes,
            max_receiving_bytes=settings.max_receiving_bytes,
            receive_timeout_s=settings.receive_timeout_s,
        )
        self.grpc: grpc.aio.Server = grpc.aio.server(
            interceptors=[CallInterceptor(self._in_flight, self._readers, Sending(settings.stall_timeout_s))],
            options=_options(settings, shares_port),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)

    def announce(self, service_name: str, check_caller: CheckCaller | None = None) -> None:
        """Add a service to health checks and reflection.

        Args:
            service_name: full name, such as 'tandem.v1.VisionService'. It is healthy once the server has started.
            check_caller: refuses callers before their request is read. Without it, everybody who can connect may send.
        """
        self._service_names.append(service_name)
        self._readers.add_service(service_name, check_caller)

    async def start(self) -> None:
        """Listen, and report every announced service as healthy.

        Raises:
            FailedPrecondition: reason 'CANNOT_LISTEN', for example if the port is in use, or 'BAD_TLS'.
        """
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        add_reflection((*self._service_names, health_name), self.grpc)
        settings = self._settings
        credentials = server_credentials(cert=settings.tls_cert, key=settings.tls_key, client_ca=settings.tls_client_ca)
        listen = self._settings.listen
        try:
            if credentials is None:
                self.port = self.grpc.add_insecure_port(listen)
            else:
                self.port = self.grpc.add_secure_port(listen, credentials)
        except RuntimeError:
            raise cannot_listen(listen) from None
        await self.grpc.start()
        for name in ("", *self._service_names):
            self.health.set(name, serving=True)

    async def stop(self, drain_s: float, at_once: asyncio.Event | None = None) -> None:
        """Drain the server and stop it.

        It reports NOT_SERVING, refuses new RPCs, waits for those in flight and cancels the rest.

        Args:
            drain_s: longest wait for RPCs in flight, seconds.
            at_once: event that ends the wait.
        """
        self._in_flight.draining = True
        self.health.stop()
        interrupted = asyncio.create_task((at_once or asyncio.Event()).wait())
        idle = asyncio.create_task(self._wait_until_idle(min(drain_s, _SETTLE_S)))
        # Start gRPC's own drain only afterwards: it cancels new RPCs, while the interceptor refuses them with a reason.
        await asyncio.wait({interrupted, idle}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        drained = idle.done() and not interrupted.done()
        for task in (interrupted, idle):
            task.cancel()
        await within(_STOP_GRPC_S, "gRPC", self.grpc.stop(_FLUSH_S if drained else None))
        # Cancelled handlers must free their resources before the service closes the models they use.
        await within(_UNWIND_S, "handlers", self._in_flight.idle.wait())

    async def _wait_until_idle(self, at_least_s: float) -> None:
        await asyncio.sleep(at_least_s)
        await self._in_flight.idle.wait()


S = TypeVar("S", bound=ServiceSettings)
OpenService = Callable[[S, Server], AbstractAsyncContextManager[None]]


def run_service(name: str, settings: S, open_service: OpenService[S], link: WorkerLink | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain and return.

    A second signal cancels the RPCs in flight. A third one kills the process.

    Args:
        name: name of the process in its log.
        settings: settings of the process.
        open_service: context manager that adds the servicers to the server, loads their models and frees them.
        link: to the supervisor, if the process is one of several workers that share their addresses.

    Raises:
        SystemExit: status 1, the service could not start. The log says why, in one line.
    """
    run_process(
        name, settings, lambda life: _serve(name, settings, open_service, life, shares_port=link is not None), link
    )


async def _serve(name: str, settings: S, open_service: OpenService[S], life: ProcessLife, *, shares_port: bool) -> None:
    server = Server(settings, shares_port=shares_port)
    probes = serve_probes(server.health, settings.probe_listen, shares_port=shares_port)
    with tracing(name, settings.trace_endpoint, settings.trace_sample, settings.trace_peers):
        async with (
            serve_metrics(settings) as server.metrics_port,
            left_within(_STOP_GRPC_S, "probes", probes) as probe_port,
            left_within(_CLOSE_S, "service", open_service(settings, server)),
        ):
            await server.start()
            life.announce_ready(port=server.port, metrics_port=server.metrics_port, probe_port=probe_port)
            await life.drain.wait()
            _log.info("stopping", drain_s=settings.drain_s)
            await server.stop(settings.drain_s, at_once=life.stop_now)


def _options(settings: ServiceSettings, shares_port: bool) -> list[tuple[str, int]]:
    return [
        # With port reuse, a second process on this port takes half of the RPCs.
        ("grpc.so_reuseport", int(shares_port)),
        # With gRPC's default of 100 per connection, further RPCs wait unseen. Our own limits refuse them with a reason.
        ("grpc.max_concurrent_streams", 10_000),
        # Calls that gRPC holds while the event loop is busy. Each has an unread window of up to 64 KiB.
        ("grpc.server.max_pending_requests", 1000),
        ("grpc.server.max_pending_requests_hard_limit", 2000),
        # A stream's window stays at 64 KiB until its message is read, then it opens for this message. With probes of
        # the bandwidth, gRPC would let megabytes of each unread stream in.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the receiver enforces its own limit
        # gRPC varies the age by a tenth, so that connections do not end together.
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", _AGE_GRACE_S * 1000),
        ("grpc.max_connection_idle_ms", round(settings.max_connection_idle_s * 1000)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_S * 1000),
        ("grpc.max_allowed_incoming_connections", allow_connections(settings.max_connections)),
        # Detect a dead client within 30 s and cancel its RPCs.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Clients and load balancers may ping every 10 s, also without calls. A second less allows for their clocks.
        # gRPC's defaults would end an idle connection at its third ping.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ]
