"""`tandem.v1.Rollouts`: the calls of operators."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from chassis.errors import InvalidArgument
from gateway.admission import Operators
from gateway.rollout.known_rollout import existing
from gateway.rollout.policy import controller, with_releases
from gateway.rollout.probe_runner import ProbeRunner
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.wire import plan_from_message, rollout_message
from gateway.stages import Releases
from tandem.v1 import rollout_pb2, rollout_pb2_grpc

SERVICE_NAME = rollout_pb2.DESCRIPTOR.services_by_name["Rollouts"].full_name

_MAX_REASON_CHARACTERS = 256

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class RolloutsServicer(rollout_pb2_grpc.RolloutsServicer):
    """Answers the five calls. The server's interceptor sends raised errors."""

    def __init__(self, store_sync: StoreSync, releases: Releases, probes: ProbeRunner, operators: Operators) -> None:
        self._store_sync = store_sync
        self._releases = releases
        self._probes = probes
        self._operators = operators

    async def Get(  # noqa: N802
        self, request: rollout_pb2.RolloutsGetRequest, context: Context
    ) -> rollout_pb2.RolloutsGetResponse:
        """Describe the rollout."""
        self._operators.check(context)
        return rollout_pb2.RolloutsGetResponse(rollout=rollout_message(self._store_sync.view))

    async def Set(  # noqa: N802
        self, request: rollout_pb2.RolloutsSetRequest, context: Context
    ) -> rollout_pb2.RolloutsSetResponse:
        """Validate a plan and begin it.

        A refused plan changes nothing.
        """
        self._operators.check(context)
        plan = plan_from_message(request.plan, in_force=self._store_sync.view.in_force)
        # Opening both releases refuses unknown tags, pairs that do not fit and broken files.
        stable, canary = [await self._releases.open(name) for name in (plan.stable, plan.canary)]
        plan = with_releases(plan, stable=stable.name, canary=canary.name)
        if plan.guard.max_quality_drop is not None:
            await self._probes.read(plan)  # refuses files that are not valid
        return rollout_pb2.RolloutsSetResponse(rollout=rollout_message(await self._store_sync.set(plan)))

    async def Promote(  # noqa: N802
        self, request: rollout_pb2.RolloutsPromoteRequest, context: Context
    ) -> rollout_pb2.RolloutsPromoteResponse:
        """Send all requests to the canary."""
        self._operators.check(context)
        reason = _reason(request.reason, "An operator promoted it.")
        view = await self._store_sync.change(lambda state, now_s: controller.promote(existing(state), reason, now_s))
        return rollout_pb2.RolloutsPromoteResponse(rollout=rollout_message(view))

    async def Rollback(  # noqa: N802
        self, request: rollout_pb2.RolloutsRollbackRequest, context: Context
    ) -> rollout_pb2.RolloutsRollbackResponse:
        """Send all new requests to the stable release."""
        self._operators.check(context)
        reason = _reason(request.reason, "An operator rolled it back.")
        view = await self._store_sync.roll_back(reason)
        return rollout_pb2.RolloutsRollbackResponse(rollout=rollout_message(view))

    async def Watch(  # noqa: N802
        self, request: rollout_pb2.RolloutsWatchRequest, context: Context
    ) -> AsyncIterator[rollout_pb2.RolloutsWatchResponse]:
        """Send the rollout now and after every change."""
        last: tuple[int, bool] | None = None
        async with self._operators.watch(context), aclosing(self._store_sync.watch()) as views:
            async for view in views:
                number = view.state.changes[-1].number if view.state is not None else 0
                if (number, view.is_unconfirmed) != last:  # a new document may only record a look of the guard
                    last = number, view.is_unconfirmed
                    yield rollout_pb2.RolloutsWatchResponse(rollout=rollout_message(view))


def _reason(text: str, default: str) -> str:
    if len(text) > _MAX_REASON_CHARACTERS:
        raise InvalidArgument(
            f"The reason has {len(text)} characters, at most {_MAX_REASON_CHARACTERS} are allowed.",
            reason="BAD_REASON",
            field="reason",
        )
    return text or default
