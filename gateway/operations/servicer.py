"""Serve `tandem.v1.Operations`: the status of the gateway."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from chassis.errors import InvalidArgument
from gateway.admission import Operators
from gateway.operations.request_window import RequestWindow
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic
from gateway.rollout.wire import rollout_message
from gateway.stages import Releases
from tandem.v1 import gateway_pb2, operations_pb2, operations_pb2_grpc

SERVICE_NAME = operations_pb2.DESCRIPTOR.services_by_name["Operations"].full_name

_DEFAULT_INTERVAL_S = 1.0
_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.2, 60.0

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class OperationsServicer(operations_pb2_grpc.OperationsServicer):
    """Answers one call.

    The server's interceptor sends raised errors.
    """

    def __init__(
        self,
        *,
        releases: Releases,
        traffic: Traffic,
        window: RequestWindow,
        store_sync: StoreSync,
        operators: Operators,
    ) -> None:
        self._releases = releases
        self._traffic = traffic
        self._window = window
        self._store_sync = store_sync
        self._operators = operators

    async def Watch(  # noqa: N802
        self, request: operations_pb2.OperationsWatchRequest, context: Context
    ) -> AsyncIterator[operations_pb2.OperationsWatchResponse]:
        """Send the status now and at an interval."""
        interval_s = _interval_s(request)
        async with self._operators.watch(context):
            while True:
                self._operators.check(context)  # each time: a key can be withdrawn meanwhile
                yield self._status()
                await asyncio.sleep(interval_s)

    def _status(self) -> operations_pb2.OperationsWatchResponse:
        return operations_pb2.OperationsWatchResponse(
            at_s=time.time(),
            window_s=self._window.seconds,
            releases=[self._release_status(name, info) for name, info in self._releases.describe().items()],
            rollout=rollout_message(self._store_sync.view),
        )

    def _release_status(self, name: str, info: gateway_pb2.ReleaseInfo) -> operations_pb2.ReleaseStatus:
        return operations_pb2.ReleaseStatus(
            info=info,
            weight_percent=self._traffic.weights_percent.get(name, 0),
            in_flight=self._traffic.num_in_flight(name),
            recent=self._window.summary(name),
            engines=self._releases.engine_loads(name),
        )


def _interval_s(request: operations_pb2.OperationsWatchRequest) -> float:
    interval_s = request.interval_s or _DEFAULT_INTERVAL_S
    if not _MIN_INTERVAL_S <= interval_s <= _MAX_INTERVAL_S:
        raise InvalidArgument(
            f"interval_s must be from {_MIN_INTERVAL_S:g} to {_MAX_INTERVAL_S:g} seconds, or 0.",
            reason="BAD_INTERVAL",
            field="interval_s",
        )
    return interval_s
