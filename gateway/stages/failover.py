"""A call that fails on one replica is made on another, as long as nothing has come of it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from prometheus_client import Counter

from chassis.errors import ResourceExhausted, Unavailable
from gateway.stages.endpoint import Stub
from gateway.stages.stage import Replica

FAILOVERS = Counter("tandem_gateway_failovers", "Calls made again on another replica, by stage.", ["stage"])


# A request that kills what answers it must not go through all replicas.
_MAX_TRIES = 3

_log = structlog.get_logger()

T = TypeVar("T")


async def with_failover(
    first: Replica[Stub], call: Callable[[Replica[Stub]], Awaitable[T]], *, may_repeat: Callable[[], bool]
) -> T:
    """Return what `call` gives on `first`, or on another replica where one cannot be reached, stops or is full.

    Args:
        first: who is asked first.
        call: makes the call; made anew for each replica.
        may_repeat: asked after a failure; False where something of the answer has been passed on.

    Raises:
        TandemError: the last replica's; or that of one which was full, for it is there, and waiting helps.
    """
    tried = [first]
    full: ResourceExhausted | None = None
    while True:
        try:
            with tried[-1].endpoint.calling(tried[-1].info.tag):
                return await call(tried[-1])
        except (Unavailable, ResourceExhausted) as error:
            if not may_repeat():
                raise
            full = error if isinstance(error, ResourceExhausted) else full
            stage = tried[-1].stage
            other = await stage.another(tried) if len(tried) < _MAX_TRIES else None
            if other is None:
                raise (full or error) from None
            FAILOVERS.labels(stage.name).inc()
            _log.warning("tried on another replica", stage=stage.name, reason=error.reason, tries=len(tried))
            tried.append(other)
