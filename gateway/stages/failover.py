"""Retry a failed stage call on another replica."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from prometheus_client import Counter

from chassis.errors import ResourceExhausted, Unavailable
from gateway.stages.endpoint import Stub
from gateway.stages.stage import Replica

FAILOVERS = Counter("tandem_gateway_failovers", "Calls retried on another replica, by stage.", ["stage"])

# A request that crashes its replica must not reach all of them.
_MAX_ATTEMPTS = 3

_log = structlog.get_logger()

T = TypeVar("T")


async def with_failover(
    first: Replica[Stub], call: Callable[[Replica[Stub]], Awaitable[T]], *, may_retry: Callable[[], bool]
) -> T:
    """Return the result of `call`, with retries on other replicas.

    Another replica is tried if one is full, stops or cannot be reached.

    Args:
        first: the replica to try first.
        call: makes the call, anew for each replica.
        may_retry: asked after each failure. False once a part of the answer was passed on.

    Raises:
        TandemError: the last replica's error. If a replica was full, its error instead, because that stage is there
            and waiting helps.
    """
    tried = [first]
    full: ResourceExhausted | None = None
    while True:
        replica = tried[-1]
        try:
            with replica.endpoint.track_call(replica.info.tag):
                return await call(replica)
        except (Unavailable, ResourceExhausted) as error:
            if not may_retry():
                raise
            full = error if isinstance(error, ResourceExhausted) else full
            alternative = await replica.stage.find_alternative(tried) if len(tried) < _MAX_ATTEMPTS else None
            if alternative is None:
                raise (full or error) from None
            FAILOVERS.labels(replica.stage.name).inc()
            _log.warning(
                "retrying on another replica", stage=replica.stage.name, reason=error.reason, attempts=len(tried)
            )
            tried.append(alternative)
