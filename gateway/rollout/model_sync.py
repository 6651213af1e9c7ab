"""Has the stages hold the releases a rollout needs before they take requests, and drop them when they have left."""

import asyncio
import time
from collections.abc import Callable

import structlog

from chassis.errors import FailedPrecondition, TandemError, Unavailable
from checkpoint.tags import split_release
from gateway.rollout.policy import Phase, State, controller
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic
from gateway.stages import ModelLoading, Releases

_log = structlog.get_logger()


class ModelSync:
    """One gateway's part in it; several do the same side by side, and the stages load each model once."""

    def __init__(
        self,
        store_sync: StoreSync,
        traffic: Traffic,
        releases: Releases,
        life: ModelLoading,
        *,
        every_s: float,
        load_timeout_s: float,
    ) -> None:
        """Do nothing yet.

        Args:
            store_sync: says what is needed, and takes the news that it is there.
            traffic: says what is in use.
            releases: opens what is needed.
            life: asks the stages.
            every_s: how often stages are looked after, seconds.
            load_timeout_s: longest wait for stages that cannot be reached before a rollout is given up, seconds.
        """
        self._store_sync = store_sync
        self._traffic = traffic
        self._releases = releases
        self._life = life
        self._every_s = every_s
        self._load_timeout_s = load_timeout_s
        self._dismissed: set[tuple[str, str]] = set()  # rollout and release
        self._trouble = ""  # logged last

    async def run(self) -> None:
        """Look after the stages at every change, and every so often, until cancelled."""
        while True:
            state = self._store_sync.view.state
            if state is not None:
                await self._while_needed(state)
            await self._store_sync.wait_for_change(self._every_s)

    async def _while_needed(self, state: State) -> None:
        """Look after the stages until something else is needed: what hangs holds up no rollout that comes after it."""
        work = asyncio.create_task(self._look_after(state))
        try:
            while not work.done() and _same_need(state, self._store_sync.view.state):
                change = asyncio.create_task(self._store_sync.wait_for_change(self._every_s))
                await asyncio.wait({work, change}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            work.cancel()
            await asyncio.wait({work})

    async def _look_after(self, state: State) -> None:
        try:
            await self._settle(state)
        except Exception:  # the next round may do better, and a rollout must not wait for ever
            _log.exception("rollout model sync failed")

    async def _settle(self, state: State) -> None:
        try:
            await self._hold(state)
            self._trouble = ""
        except TandemError as error:
            await self._failed(state, error)
            return
        if state.phase is Phase.PREPARING:
            await self._change(state, controller.start)
        await self._dismiss(state)

    async def _hold(self, state: State) -> None:
        """Open what the rollout needs here, and have the stages hold it: also after one of them started anew."""
        for name in state.needed:
            release = await self._releases.open(name)
            if name != self._traffic.own_name:  # which the stages' own settings name, too
                await self._life.load(release)
            await self._releases.route(release, with_images=True)  # checks that the halves fit

    async def _failed(self, state: State, error: TandemError) -> None:
        """Give a rollout up whose canary cannot be loaded; what is in force already is tried again."""
        if error.message != self._trouble:
            _log.warning("release not loaded", reason=error.reason, error=error.local_message, phase=state.phase)
            self._trouble = error.message
        waited_s = time.time() - state.step_started_s
        if state.phase is Phase.PREPARING and (not isinstance(error, Unavailable) or waited_s > self._load_timeout_s):
            why = f"The canary could not be loaded: {error.message}"
            await self._change(state, lambda now, now_s: controller.roll_back(now, why, now_s))

    async def _change(self, prepared: State, transition: Callable[[State, float], State]) -> None:
        """Start the rollout, or roll it back, unless another gateway or an operator was faster."""

        def if_still_preparing(state: State | None, now_s: float) -> State:
            if state is None or state.id != prepared.id or state.phase is not Phase.PREPARING:
                raise FailedPrecondition("The rollout has gone on.", reason="ROLLOUT_CHANGED")
            return transition(state, now_s)

        try:
            await self._store_sync.change(if_still_preparing)
        except TandemError as error:
            if error.reason != "ROLLOUT_CHANGED":
                _log.warning("rollout not changed, trying again", reason=error.reason, error=error.message)

    async def _dismiss(self, state: State) -> None:
        """Drop what has left, once no gateway can put a request on it any more and none is under way."""
        offered = self._traffic.offered
        keep = {tag for name in offered for tag in split_release(name)}
        for name in {state.plan.stable, state.plan.canary}.difference(offered):
            if (state.id, name) in self._dismissed or not self._is_left(name):
                continue
            try:
                await self._life.unload(*split_release(name), keep=keep)
            except TandemError as error:
                _log.warning("release not unloaded", release=name, reason=error.reason, error=error.message)
                continue
            self._releases.drop(name)
            self._dismissed.add((state.id, name))
            _log.info("release dismissed", release=name, rollout=state.id)

    def _is_left(self, name: str) -> bool:
        """Say whether every gateway knows that the release has left, and has answered its last request on it."""
        version = self._store_sync.version
        gateways = self._store_sync.gateways
        return bool(gateways) and all(one.version >= version and name not in one.in_use for one in gateways)


def _same_need(one: State, other: State | None) -> bool:
    return other is not None and (one.id, one.needed) == (other.id, other.needed)
