"""Metrics of every server.

A service defines its own metrics beside the code that they measure.
"""

from prometheus_client import Counter, Gauge, Histogram

RPC_REQUESTS = Counter("tandem_rpc_requests", "Finished RPCs, by method and gRPC status.", ["method", "code"])
RPC_SECONDS = Histogram(
    "tandem_rpc_seconds",
    "Duration of an RPC, from its headers to its status, seconds.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
RPC_UNREAD = Counter(
    "tandem_rpc_unread",
    "RPCs whose request was not received, by method: it exceeds --max-message-bytes, or its client left.",
    ["method"],
)
TASKS = Gauge("tandem_tasks", "Tasks of the event loop. A finished request leaves none behind.")
RPC_IN_FLIGHT = Gauge("tandem_rpc_in_flight", "RPCs in flight, without health checks and watches.", ["method"])
