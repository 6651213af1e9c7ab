"""Metrics every server has. A service defines its own beside the code they measure."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from chassis.errors import FailedPrecondition

RPC_REQUESTS = Counter("tandem_rpc_requests", "Calls that ended, by method and gRPC status.", ["method", "code"])
RPC_SECONDS = Histogram(
    "tandem_rpc_seconds",
    "From the call's headers to its status, seconds.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
TASKS = Gauge("tandem_tasks", "Tasks of the event loop; as many after a request as before it.")
RPC_IN_FLIGHT = Gauge("tandem_rpc_in_flight", "Calls that are being handled.", ["method"])


@contextmanager
def metrics_over_http(host: str, port: int) -> Iterator[int]:
    """Answer Prometheus at `http://host:port/metrics` while the block runs; yield the port, -1 when switched off.

    Args:
        host: address to listen on.
        port: 0 picks a free one, -1 switches off.

    Raises:
        FailedPrecondition: reason 'CANNOT_LISTEN', the port is taken or the host is not of this machine.
    """
    if port < 0:
        yield -1
        return
    try:
        server, _thread = start_http_server(port, host)
    except OSError:
        raise FailedPrecondition(f"Cannot listen on {host}:{port} for metrics.", reason="CANNOT_LISTEN") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
