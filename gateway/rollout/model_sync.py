"""Load and unload the stages' models as a rollout needs."""

import asyncio
import time
from collections.abc import Callable

import structlog

from chassis.errors import FailedPrecondition, TandemError, Unavailable
from checkpoint.tags import split_release
from gateway.rollout.policy import Phase, State, controller
from gateway.rollout.probe_runner import ProbeRunner
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic
from gateway.stages import ModelLoading, Releases

_log = structlog.get_logger()


class ModelSync:
    """Keeps the stages' models in sync with the rollout.

    All gateways do this at the same time. A stage still loads each model only once.
    """

    def __init__(
        self,
        store_sync: StoreSync,
        traffic: Traffic,
        releases: Releases,
        loading: ModelLoading,
        probes: ProbeRunner,
        *,
        every_s: float,
        load_timeout_s: float,
    ) -> None:
        """Start nothing yet.

        Args:
            store_sync: knows the state and changes it once the models are loaded.
            traffic: knows the releases in use.
            releases: opens releases by name.
            loading: loads and unloads models at the stages.
            probes: lets both releases answer the probes, once they are loaded.
            every_s: time between two checks of the stages, seconds.
            load_timeout_s: a rollout is rolled back after waiting so long for unreachable stages, seconds.
        """
        self._store_sync = store_sync
        self._traffic = traffic
        self._releases = releases
        self._loading = loading
        self._probes = probes
        self._every_s = every_s
        self._load_timeout_s = load_timeout_s
        self._unloaded: set[tuple[str, str]] = set()  # pairs of rollout and release
        self._last_error = ""  # logged last, to log each error once
        self._preparing = ("", 0.0)  # rollout, and time of its first failed load here

    async def run(self) -> None:
        """Sync after every change and every `every_s`, until cancelled."""
        while True:
            state = self._store_sync.view.state
            if state is not None:
                await self._sync_until_needs_change(state)
            await self._store_sync.wait_for_change(self._every_s)

    async def _sync_until_needs_change(self, state: State) -> None:
        """Sync until done, or until other releases are needed.

        So a hanging load does not block the next rollout.
        """
        work = asyncio.create_task(self._sync_and_log(state))
        try:
            while not work.done() and _has_same_needs(state, self._store_sync.view.state):
                change = asyncio.create_task(self._store_sync.wait_for_change(self._every_s))
                await asyncio.wait({work, change}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
        finally:
            work.cancel()
            await asyncio.wait({work})

    async def _sync_and_log(self, state: State) -> None:
        try:
            await self._sync(state)
        except Exception:  # never let this loop die: the next round may succeed
            _log.exception("rollout model sync failed")

    async def _sync(self, state: State) -> None:
        try:
            await self._ensure_loaded(state)
            self._last_error = ""
        except TandemError as error:
            await self._handle_load_error(state, error)
            return
        if state.phase is Phase.PREPARING:
            await self._probe_and_start(state)
        await self._unload_departed(state)

    async def _probe_and_start(self, state: State) -> None:
        """Start the rollout, or roll it back by the probes.

        Do nothing while another gateway runs the probes. This is called again after `every_s`.
        """
        try:
            probing = await self._probes.run(state)
        except Unavailable as error:
            _log.warning("probes not run, will retry", reason=error.reason, error=error.local_message)
        except TandemError as error:
            reason = f"The probes cannot be used: {error.message}"
            await self._change(state, lambda now, now_s: controller.roll_back(now, reason, now_s))
        else:
            if probing is not None:
                await self._change(state, lambda now, now_s: controller.start(now, now_s, probing))

    async def _ensure_loaded(self, state: State) -> None:
        """Open the needed releases and load them at the stages.

        Stages that restarted load them again.
        """
        for name in state.needed:
            release = await self._releases.open(name)
            if name != self._traffic.configured_name:  # the stages load that one by their own settings
                await self._loading.load(release)
            await self._releases.route(release, with_images=True)  # checks that the halves fit

    async def _handle_load_error(self, state: State, error: TandemError) -> None:
        """Roll back a rollout whose canary cannot be loaded.

        While a stage is unreachable, or once the rollout runs, only wait for the next round.
        """
        if error.message != self._last_error:
            _log.warning("release not loaded", reason=error.reason, error=error.local_message, phase=state.phase)
            self._last_error = error.message
        if self._preparing[0] != state.id:  # measured here, because the clocks of gateways may differ
            self._preparing = (state.id, time.monotonic())
        waited_s = time.monotonic() - self._preparing[1]
        if state.phase is Phase.PREPARING and (not isinstance(error, Unavailable) or waited_s > self._load_timeout_s):
            reason = f"The canary could not be loaded: {error.message}"
            await self._change(state, lambda now, now_s: controller.roll_back(now, reason, now_s))

    async def _change(self, prepared: State, transition: Callable[[State, float], State]) -> None:
        """Start or roll back a rollout that is still preparing.

        Do nothing if another gateway or an operator was faster.
        """

        def if_still_preparing(state: State | None, now_s: float) -> State:
            if state is None or state.id != prepared.id or state.phase is not Phase.PREPARING:
                raise FailedPrecondition("The rollout is no longer preparing.", reason="ROLLOUT_CHANGED")
            return transition(state, now_s)

        try:
            await self._store_sync.change(if_still_preparing)
        except TandemError as error:
            if error.reason != "ROLLOUT_CHANGED":
                _log.warning("rollout not changed, will retry", reason=error.reason, error=error.local_message)

    async def _unload_departed(self, state: State) -> None:
        """Unload releases that are unused at every gateway."""
        offered = self._traffic.offered
        keep = {tag for name in offered for tag in split_release(name)}
        for name in {state.plan.stable, state.plan.canary}.difference(offered):
            if (state.id, name) in self._unloaded or not self._is_unused_everywhere(name):
                continue
            try:
                await self._loading.unload(*split_release(name), keep=keep)
            except TandemError as error:
                _log.warning("release not unloaded", release=name, reason=error.reason, error=error.local_message)
                continue
            self._releases.drop(name)
            self._unloaded.add((state.id, name))
            _log.info("release unloaded", release=name, rollout=state.id)

    def _is_unused_everywhere(self, name: str) -> bool:
        """Return whether no gateway needs the release any more.

        Every gateway must act on the current state and have no request in flight on the release.
        """
        version = self._store_sync.version
        heartbeats = self._store_sync.heartbeats
        return bool(heartbeats) and all(one.version >= version and name not in one.in_use for one in heartbeats)


def _has_same_needs(one: State, other: State | None) -> bool:
    return other is not None and (one.id, one.needed) == (other.id, other.needed)
