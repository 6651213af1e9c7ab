"""Keep one gateway and the rollout store in sync."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

import structlog

from chassis.cancellation import is_asked_to_stop
from chassis.errors import FailedPrecondition, TandemError, Unavailable
from gateway.rollout import decision_log
from gateway.rollout.confirmation import confirmed, may_decide
from gateway.rollout.known_rollout import KnownRollout, View, existing
from gateway.rollout.local_copy import LocalCopy
from gateway.rollout.policy import Phase, Plan, Probing, State, controller
from gateway.rollout.store import FileStore, RolloutStore
from gateway.rollout.stored_format import Document, Heartbeat
from gateway.rollout.traffic import Traffic

# A command tries again when another gateway changes the document first.
_MAX_ATTEMPTS = 20

_log = structlog.get_logger()

Transition = Callable[[State | None, float], State]  # from the stored state and the Unix time to the next state


class StoreSync(KnownRollout):
    """Keeps this gateway and the store in sync.

    It reads the state, acts on it, adds counts and decides. For one event loop.
    """

    def __init__(
        self,
        store: RolloutStore,
        traffic: Traffic,
        *,
        local_copy: FileStore | None,
        tick_s: float,
        share: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            store: shared by all gateways.
            traffic: routes by the state.
            local_copy: a copy of a remote store, for a start while it is unreachable. None for a local store.
            tick_s: time between two reads of the store, seconds.
            share: called while a rollout runs, to tell the store more.
        """
        super().__init__(traffic)
        self._store = store
        self._local_copy = LocalCopy(local_copy)
        self._tick_s = tick_s
        self._share = share
        self._name = secrets.token_hex(8)
        self._elapsed_s = 0.0  # of the running step
        self.own_probing: Probing | None = None  # answers so far, while this gateway runs the probes

    async def open(self) -> None:
        """Adopt the stored state.

        While the store is unreachable, adopt the local copy.

        Raises:
            FailedPrecondition: reason 'BAD_ROLLOUT_STATE', the stored state is not valid.
        """
        self._adopt(await self._local_copy.read())
        try:
            self._adopt(await self._read())
        except Unavailable as error:
            self._health.note_problem(error)
            _log.warning("serving the last known rollout", version=self._document.version, **self._log_fields())

    async def run(self) -> None:
        """Keep in sync with the store until cancelled."""
        while not is_asked_to_stop():  # Redis's client can take a cancellation for its own timeout
            try:
                await self._tick(time.time())
            except Exception as error:  # never let this loop die: a dead guard looks like a healthy canary
                self._health.note_problem(error)
                self._judge_alone()
            await self._local_copy.write(self._document)
            await asyncio.sleep(self._tick_s)

    async def set(self, plan: Plan) -> View:
        """Begin a rollout.

        Raises:
            FailedPrecondition: as `controller.begin`.
            Unavailable: reason 'ROLLOUT_STORE_UNREACHABLE'.
        """
        rollout_id = secrets.token_hex(8)
        return await self.change(
            lambda state, now_s: controller.begin(
                state, plan, in_force=self._traffic.in_force, rollout_id=rollout_id, now_s=now_s
            )
        )

    async def change(self, transition: Transition) -> View:
        """Apply a transition to the state and adopt the result.

        A cancelled caller does not stop it: this gateway must act on whatever the store accepted.

        Raises:
            Unavailable: reason 'ROLLOUT_STORE_UNREACHABLE' or 'ROLLOUT_CONTENDED'.
            TandemError: any that `transition` raises.
        """
        return await asyncio.shield(self._change(transition))

    async def roll_back(self, reason: str) -> View:
        """Roll back at once, also without the store.

        This gateway acts before it asks the store. While the store cannot take it, the rollback is in force at this
        gateway only, which stores it as soon as it can.

        Raises:
            FailedPrecondition: reason 'NO_ROLLOUT'.
            Unavailable: reason 'ROLLOUT_STORE_UNREACHABLE', and this gateway knows of no rollout.
        """
        return await asyncio.shield(self._roll_back(reason))

    async def _roll_back(self, reason: str) -> View:
        state = self._document.state
        if not self._document.is_unconfirmed:
            if state is None or not state.is_live:  # the store may have a newer one
                return await self._change(lambda now, now_s: controller.roll_back(existing(now), reason, now_s))
            self._act_alone(controller.roll_back(state, reason, time.time()))
            await self._local_copy.write(self._document)  # the store may hang
        try:
            self._adopt(await self._read())
        except TandemError as error:
            self._health.note_problem(error)
        now = self._document.state
        if now is None or now.phase is not Phase.ROLLED_BACK:
            raise FailedPrecondition("Another gateway has just ended the rollout.", reason="NO_ROLLOUT")
        return self.view

    async def _change(self, transition: Transition) -> View:
        for _ in range(_MAX_ATTEMPTS):
            document = await self._read()
            self._adopt(document)
            if await self._commit(document, transition(document.state, time.time())):
                return self.view
        raise _contended()

    async def take_lease(self, task: str, seconds: float) -> bool:
        """Take or renew a lease. Return whether it succeeded.

        Raises:
            Unavailable: reason 'ROLLOUT_STORE_UNREACHABLE'.
        """
        return await self._store.take_lease(task, self._name, seconds)

    async def _tick(self, now_s: float) -> None:
        """Adopt the state, exchange heartbeats and counts, and decide."""
        document = await self._read()
        self._adopt(document)
        own = Heartbeat(
            gateway=self._name,
            version=document.version,
            in_use=self._traffic.in_use,
            waiting=self._traffic.waiting,
            probing=self.own_probing,
        )
        self.heartbeats = await self._store.heartbeat(own)
        state = document.state
        if state is not None and state.phase is Phase.RUNNING:
            await self._exchange_counts(state)
            if self._share is not None:
                await self._share()
            following = controller.tick(state, self._counts, now_s, elapsed_s=self._elapsed_s)
            if following is not None and may_decide(document, following):
                await self._commit(document, following)
        self._health.note_success()

    async def _read(self) -> Document:
        """Return the stored document.

        A store that lost its data is restored first, so the rollout stays. A rollback that it could not take is stored.
        """
        document = await self._store.read()
        if self._document.is_unconfirmed:
            return await self._confirm(document)
        if document.version < self._document.version:
            if await self._store.compare_and_set(document.version, self._document):
                _log.warning("rollout store restored", version=self._document.version)
            document = await self._store.read()
        return document

    async def _confirm(self, stored: Document) -> Document:
        """Store the rollback that only this gateway has."""
        for _ in range(_MAX_ATTEMPTS):
            if not self._document.is_unconfirmed:  # a concurrent call has stored it
                return stored
            document = confirmed(self._document, stored)
            if document is None:
                _log.warning("rollback not stored, others had ended the rollout", version=stored.version)
                self._replace(stored)
                return stored
            if await self._store.compare_and_set(stored.version, document):
                _log.info("rollback stored", version=document.version)
                self._replace(document)
                return document
            stored = await self._store.read()
        raise _contended()

    async def _exchange_counts(self, state: State) -> None:
        """Add own counts to the store and get the sums."""
        counts = self._traffic.drain_counts()
        try:
            totals = await self._store.add(state.window, counts)
        except TandemError:
            self._traffic.add_counts(state.window, counts)  # for the next attempt
            raise
        total, self._elapsed_s = totals.counts, totals.elapsed_s
        for heartbeat in self.heartbeats:
            for arm, count in heartbeat.waiting.items():
                total.add(arm, "waiting", count)
        self._counts = total

    async def _commit(self, document: Document, following: State) -> bool:
        """Store and adopt a state, unless another gateway was faster.

        The gateway that stores it logs the decision.
        """
        successor = document.followed_by(following)
        if not await self._store.compare_and_set(document.version, successor):
            return False
        if document.state is None or following.changes[-1] != document.state.changes[-1]:
            decision_log.write(following, self._counts)
        self._adopt(successor)
        return True


def _contended() -> Unavailable:
    return Unavailable(
        "Other gateways keep changing the rollout. Try again.", reason="ROLLOUT_CONTENDED", retry_after_s=1
    )
