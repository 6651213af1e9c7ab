"""Keep one gateway and the rollout store in sync."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from prometheus_client import Gauge

from chassis.cancellation import is_asked_to_stop
from chassis.errors import TandemError, Unavailable
from gateway.rollout import decision_log
from gateway.rollout.policy import Counts, Phase, Plan, Probing, State, controller
from gateway.rollout.store import Document, FileStore, Heartbeat, RolloutStore
from gateway.rollout.traffic import Traffic

STORE_UP = Gauge("tandem_rollout_store_up", "1 if this gateway reaches the rollout store, else 0.")
# A command tries again when another gateway changes the document first.
_MAX_ATTEMPTS = 20

_log = structlog.get_logger()

Transition = Callable[[State | None, float], State]  # from the stored state and the Unix time to the next state


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The rollout as this gateway knows it."""

    state: State | None
    in_force: str
    counts: Counts  # of the running step, over all gateways
    store_reachable: bool
    probing: Probing | None = None  # the result of the probes, or their answers so far


class StoreSync:
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
        self._store = store
        self._traffic = traffic
        self._local_copy = local_copy
        self._tick_s = tick_s
        self._share = share
        self._name = secrets.token_hex(8)
        self._document = Document()
        self._counts = Counts()
        self._is_reachable = True
        self._changed = asyncio.Event()
        self.heartbeats: list[Heartbeat] = []  # of all living gateways
        self.own_probing: Probing | None = None  # answers so far, while this gateway runs the probes

    @property
    def view(self) -> View:
        """The rollout as this gateway knows it now."""
        return View(
            state=self._document.state,
            in_force=self._traffic.in_force,
            counts=self._counts,
            store_reachable=self._is_reachable,
            probing=self._probing,
        )

    @property
    def _probing(self) -> Probing | None:
        state = self._document.state
        if state is None or state.phase is not Phase.PREPARING:
            return state.probing if state is not None else None
        return next((one.probing for one in self.heartbeats if one.probing is not None), None)

    @property
    def version(self) -> int:
        """Version of the document this gateway acts on."""
        return self._document.version

    async def open(self) -> None:
        """Adopt the stored state.

        While the store is unreachable, adopt the local copy.

        Raises:
            FailedPrecondition: reason 'BAD_ROLLOUT_STATE', the stored state is not valid.
        """
        if self._local_copy is not None:
            self._adopt(await self._local_copy.read())
        try:
            self._adopt(await self._read())
        except Unavailable as error:
            self._mark_unreachable(error)
            _log.warning("serving the last known rollout", version=self._document.version, **self._log_fields())

    async def run(self) -> None:
        """Keep in sync with the store until cancelled."""
        while not is_asked_to_stop():  # Redis's client can take a cancellation for its own timeout
            try:
                await self._tick(time.time())
            except TandemError as error:
                self._mark_unreachable(error)
            except Exception:  # never let this loop die: a dead guard looks like a healthy canary
                _log.exception("rollout sync failed")
            await self._write_local_copy()
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

    async def _change(self, transition: Transition) -> View:
        for _ in range(_MAX_ATTEMPTS):
            document = await self._read()
            self._adopt(document)
            if await self._commit(document, transition(document.state, time.time())):
                return self.view
        raise Unavailable(
            "Other gateways keep changing the rollout. Try again.", reason="ROLLOUT_CONTENDED", retry_after_s=1
        )

    async def take_lease(self, task: str, seconds: float) -> bool:
        """Take or renew a lease. Return whether it succeeded.

        Raises:
            Unavailable: reason 'ROLLOUT_STORE_UNREACHABLE'.
        """
        return await self._store.take_lease(task, self._name, seconds)

    async def watch(self) -> AsyncGenerator[View, None]:
        """Yield the view now and after every change."""
        while True:
            changed = self._changed
            yield self.view
            await changed.wait()

    async def wait_for_change(self, within_s: float) -> None:
        """Wait until the rollout changes or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):  # `wait_for` can lose a cancellation before Python 3.12
                await self._changed.wait()

    async def _tick(self, now_s: float) -> None:
        """Adopt the state, exchange heartbeats and counts, and decide."""
        document = await self._read()
        self._mark_reachable()
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
        if state is None or state.phase is not Phase.RUNNING:
            return
        await self._exchange_counts(state)
        if self._share is not None:
            await self._share()
        following = controller.tick(state, self._counts, now_s)
        if following is not None:
            await self._commit(document, following)

    async def _read(self) -> Document:
        """Return the stored document.

        A store that lost its data is restored first, so the rollout stays.
        """
        document = await self._store.read()
        if document.version < self._document.version:
            await self._store.compare_and_set(document.version, self._document)
            document = await self._store.read()
            _log.warning("rollout store restored", version=document.version)
        return document

    async def _exchange_counts(self, state: State) -> None:
        """Add own counts to the store and get the sums."""
        counts = self._traffic.drain_counts()
        try:
            total = await self._store.add(state.window, counts)
        except TandemError:
            self._traffic.add_counts(state.window, counts)  # for the next attempt
            raise
        for heartbeat in self.heartbeats:
            for arm, count in heartbeat.waiting.items():
                total.add(arm, "waiting", count)
        self._counts = total

    async def _commit(self, document: Document, following: State) -> bool:
        """Store and adopt a state, unless another gateway was faster.

        The gateway that stores it logs the decision.
        """
        successor = Document(version=document.version + 1, state=following)
        if not await self._store.compare_and_set(document.version, successor):
            return False
        if document.state is None or following.changes[-1] != document.state.changes[-1]:
            decision_log.write(following, self._counts)
        self._adopt(successor)
        return True

    def _adopt(self, document: Document) -> None:
        """Act on a document from the next request on."""
        # Compare whole documents. A store that lost data may have another state of the same version.
        if document == self._document:
            return
        before, state = self._document.state, document.state
        self._document = document
        self._traffic.adopt(state)
        if state is None or before is None or state.window != before.window:
            self._counts = Counts()
        _log.info("rollout state", version=document.version, **self._log_fields())
        self._changed.set()
        self._changed = asyncio.Event()

    async def _write_local_copy(self) -> None:
        if self._local_copy is None:
            return
        kept = await self._local_copy.read()
        if kept.version != self._document.version:
            try:
                await self._local_copy.compare_and_set(kept.version, self._document)
            except TandemError as error:
                _log.error("local copy of the rollout not written", error=error.local_message)

    def _log_fields(self) -> dict[str, Any]:
        return decision_log.fields(self._document.state, in_force=self._traffic.in_force)

    def _mark_unreachable(self, error: TandemError) -> None:
        if self._is_reachable:
            _log.error("rollout store unreachable", reason=error.reason, error=error.local_message)
        self._is_reachable = False
        STORE_UP.set(0)

    def _mark_reachable(self) -> None:
        if not self._is_reachable:
            _log.info("rollout store reachable again")
        self._is_reachable = True
        STORE_UP.set(1)
