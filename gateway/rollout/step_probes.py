"""Ask further probes in the steps, while quality is open."""

from functools import partial

import structlog

from chassis.cancellation import is_asked_to_stop
from chassis.errors import FailedPrecondition, TandemError
from gateway.rollout.policy import Phase, Probing, State, controller
from gateway.rollout.probe_runner import ProbeRunner
from gateway.rollout.store_sync import StoreSync

_log = structlog.get_logger()


class StepProbes:
    """Goes on with the probes once the canary gets traffic.

    The state keeps the answers so far, so another gateway goes on where one died.
    """

    def __init__(self, store_sync: StoreSync, probes: ProbeRunner, *, every_s: float) -> None:
        """Start nothing yet.

        Args:
            store_sync: knows the state, and keeps the answers in it.
            probes: asks them.
            every_s: time between two attempts, seconds.
        """
        self._store_sync = store_sync
        self._probes = probes
        self._every_s = every_s
        self._last_problem = ""  # logged last, to log each problem once

    async def run(self) -> None:
        """Ask after every change and every `every_s`, until cancelled."""
        while not is_asked_to_stop():  # as in `StoreSync.run`
            state = self._store_sync.view.state
            if state is not None and state.phase is Phase.RUNNING:
                try:
                    await self._probes.go_on(state, partial(self._record, state.id))
                    self._last_problem = ""
                except TandemError as error:
                    self._report(error)
                except Exception:  # never let this loop die: the next round may succeed
                    _log.exception("probes in the steps failed")
            await self._store_sync.wait_for_change(self._every_s)

    def _report(self, error: TandemError) -> None:
        if error.local_message != self._last_problem:
            _log.warning("probes not asked, will retry", reason=error.reason, error=error.local_message)
            self._last_problem = error.local_message

    async def _record(self, rollout_id: str, probing: Probing) -> bool:
        """Keep answers in the state. Return whether to go on."""

        def record(state: State | None, now_s: float) -> State:
            known = state.probing if state is not None else None
            if state is None or known is None or state.id != rollout_id or state.phase is not Phase.RUNNING:
                raise FailedPrecondition("The rollout has ended.", reason="ROLLOUT_CHANGED")
            if known.num_asked >= probing.num_asked:
                raise FailedPrecondition("Another gateway has more answers.", reason="ROLLOUT_CHANGED")
            return controller.record_probes(state, probing, now_s)

        try:
            view = await self._store_sync.change(record)
        except FailedPrecondition as error:
            if error.reason != "ROLLOUT_CHANGED":
                raise
            return False
        return view.state is not None and view.state.is_live
