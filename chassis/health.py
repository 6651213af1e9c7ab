"""The process's answers to `grpc.health.v1` checks.

Names are '' for the whole process, 'tandem.v1.VisionService' for a service and '<service>/<tag>' for a model.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.interceptor import CallInterceptor, CallsInFlight
from chassis.listening import cannot_listen
from chassis.network import peer_host
from chassis.request_reader import RequestReaders
from chassis.sending import Sending

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

MAX_WATCHES = 4096  # of the process
MAX_WATCHES_PER_HOST = 256
_STALL_S = 60.0  # of a watcher at the port of probes
_MAX_PROBE_BYTES = 4096  # of a request there
_PROBE_TIMEOUT_S = 10.0  # for it to arrive

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped
    """Serving status by name, and the servicer that reports it.

    Setting a status never waits for a watcher. Each watcher sends the newest status itself, and may skip others.
    """

    def __init__(self) -> None:
        self._statuses = {"": NOT_SERVING}
        self._changes: set[asyncio.Event] = set()  # one per watcher
        self._num_watches: Counter[str] = Counter()  # by host
        self._is_stopped = False

    def set(self, name: str, serving: bool) -> None:
        """Set the status of `name`. Has no effect after `stop`."""
        if not self._is_stopped:
            self._statuses[name] = SERVING if serving else NOT_SERVING
            self._notify()

    def remove(self, name: str) -> None:
        """Forget `name`, which is then unknown."""
        if self._statuses.pop(name, None) is not None:
            self._notify()

    def stop(self) -> None:
        """Report NOT_SERVING for every name from now on."""
        self._is_stopped = True
        self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
        self._notify()

    def status(self, name: str) -> int:
        """Return the status of `name`, a `ServingStatus`."""
        return int(self._statuses.get(name, SERVICE_UNKNOWN))

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """Report one status."""
        status = self.status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "This process has no service or model of that name.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """Report one status and its changes, until the client leaves."""
        host, sent = peer_host(context.peer()), None
        if len(self._changes) >= MAX_WATCHES or self._num_watches[host] >= MAX_WATCHES_PER_HOST:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "There are too many health watches: end some, or use Check."
            )
        with self._watching(host) as changed:
            while True:
                changed.clear()
                status = self.status(request.service)
                if status != sent:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    sent = status
                await changed.wait()

    @contextmanager
    def _watching(self, host: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set at each change."""
        changed = asyncio.Event()
        self._num_watches[host] += 1
        self._changes.add(changed)
        try:
            yield changed
        finally:
            self._changes.discard(changed)
            self._num_watches[host] -= 1
            if not self._num_watches[host]:
                del self._num_watches[host]

    def _notify(self) -> None:
        for changed in self._changes:
            changed.set()


@asynccontextmanager
async def serve_probes(health: Health, listen: str | None, *, shares_port: bool = False) -> AsyncIterator[int]:
    """Serve health checks alone until the block ends.

    It takes plain text, because a kubelet probes without TLS and keys. The process is NOT_SERVING until its server has
    started.

    Yields the port, or -1 without an address.

    Args:
        health: answers the checks.
        listen: 'host:port', port 0 picks a free one. None serves nothing.
        shares_port: whether other processes of this service listen on the same port.

    Raises:
        FailedPrecondition: reason 'CANNOT_LISTEN', for example if the port is in use.
    """
    if listen is None:
        yield -1
        return
    readers = RequestReaders(
        max_message_bytes=_MAX_PROBE_BYTES, max_receiving_bytes=_MAX_PROBE_BYTES, receive_timeout_s=_PROBE_TIMEOUT_S
    )
    server = grpc.aio.server(
        interceptors=[CallInterceptor(CallsInFlight(), readers, Sending(_STALL_S))],
        options=[
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", _MAX_PROBE_BYTES),
        ],
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        raise cannot_listen(listen, service="probes") from None
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
