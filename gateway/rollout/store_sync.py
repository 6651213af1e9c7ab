"""A rollout in a running gateway: reads the store, acts on it, counts, decides where it is first, and tells of it."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from chassis.errors import TandemError, Unavailable
from gateway.rollout import metrics
from gateway.rollout.policy import Counts, Phase, Plan, State, controller
from gateway.rollout.store import Document, FileStore, Presence, RolloutStore
from gateway.rollout.traffic import Traffic

# Compare-and-set races one command may lose; each means that another gateway got something done.
_MAX_RACES = 20

_log = structlog.get_logger()

Transition = Callable[[State | None, float], State]  # from the state in the store and the time


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What this gateway knows of the rollout."""

    state: State | None
    in_force: str
    counts: Counts  # of the running step, over all gateways
    store_reachable: bool


class StoreSync:
    """Keeps this gateway and the store in step. For one event loop."""

    def __init__(self, store: RolloutStore, traffic: Traffic, *, last_known: FileStore | None, tick_s: float) -> None:
        """Do nothing yet.

        Args:
            store: what all gateways share.
            traffic: acts on the state.
            last_known: keeps a copy here, for a start without the store; None where the store is here itself.
            tick_s: how often the store is read and the numbers are looked at, seconds.
        """
        self._store = store
        self._traffic = traffic
        self._last_known = last_known
        self._tick_s = tick_s
        self._name = secrets.token_hex(8)
        self._document = Document()
        self._counts: Counts = Counter()
        self._reachable = True
        self._changed = asyncio.Event()
        self.gateways: list[Presence] = []  # that are there, as far as the store knows

    @property
    def view(self) -> View:
        """What this gateway knows now."""
        return View(
            state=self._document.state,
            in_force=self._traffic.in_force,
            counts=self._counts,
            store_reachable=self._reachable,
        )

    @property
    def version(self) -> int:
        """Version of the state this gateway acts on."""
        return self._document.version

    async def open(self) -> None:
        """Take over what the store holds, or without the store what was known last, and say so.

        Raises:
            FailedPrecondition: reason 'BAD_ROLLOUT_STATE'; which release to serve is not guessed.
        """
        if self._last_known is not None:
            self._adopt(await self._last_known.read())
        try:
            self._adopt(await self._read())
        except Unavailable as error:
            self._lost(error)
            _log.warning("serving the last known rollout", version=self._document.version, **self._summary())

    async def run(self) -> None:
        """Stay in step with the store until cancelled."""
        while True:
            try:
                await self._step(time.time())
            except TandemError as error:
                self._lost(error)
            except Exception:  # a guard that has died looks like one that is content
                _log.exception("rollout step failed")
            await self._keep_copy()
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
        """Apply a transition to what the store holds now, and act on it before returning.

        It goes on to its end where its caller leaves: what the store has taken is acted on, and told in the log.

        Raises:
            TandemError: what `transition` raises; Unavailable where the store cannot be reached.
        """
        return await asyncio.shield(self._change(transition))

    async def _change(self, transition: Transition) -> View:
        for _ in range(_MAX_RACES):
            document = await self._read()
            self._adopt(document)
            following = transition(document.state, time.time())
            if await self._commit(document, following):
                return self.view
        raise Unavailable(
            "Other gateways changed the rollout at the same time.", reason="ROLLOUT_CONTENDED", retry_after_s=1
        )

    async def watch(self) -> AsyncGenerator[View, None]:
        """Yield what this gateway knows now, and again after every change."""
        while True:
            changed = self._changed
            yield self.view
            await changed.wait()

    async def wait_for_change(self, within_s: float) -> None:
        """Wait until something changes, or until the time is up."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within_s)

    async def _step(self, now_s: float) -> None:
        document = await self._read()
        self._found()
        self._adopt(document)
        state = document.state
        presence = Presence(
            gateway=self._name,
            version=document.version,
            in_use=self._traffic.in_use,
            waiting=self._traffic.waiting,
        )
        self.gateways = await self._store.report(presence)
        if state is None or state.phase is not Phase.RUNNING:
            return
        await self._hand_in_counts(state)
        following = controller.tick(state, self._counts, now_s)
        if following is not None:
            await self._commit(document, following)

    async def _read(self) -> Document:
        """Return what the store holds; one that lost what it had gets it back, so what is in force stays."""
        document = await self._store.read()
        if document.version < self._document.version:
            await self._store.swap(document.version, self._document)
            document = await self._store.read()
            _log.warning("rollout store was behind", version=document.version)
        return document

    async def _hand_in_counts(self, state: State) -> None:
        counts = self._traffic.take_counts()
        try:
            total = await self._store.add(state.window, counts)
        except TandemError:
            self._traffic.add(state.window, counts)
            raise
        for gateway in self.gateways:
            total.update({f"{arm}/waiting": number for arm, number in gateway.waiting.items()})
        self._counts = total

    async def _commit(self, document: Document, following: State) -> bool:
        """Keep `following` if nobody was faster; the one who was first says so in its log."""
        successor = Document(version=document.version + 1, state=following)
        if not await self._store.swap(document.version, successor):
            return False
        if document.state is None or following.changes[-1] != document.state.changes[-1]:
            change = following.changes[-1]
            _log.info(
                "rollout decision",
                event_kind=change.event,
                reason=change.reason,
                weight_percent=change.weight_percent,
                **self._summary(following),
                counts=_totals(self._counts),
                findings=[finding.model_dump(mode="json") for finding in change.findings],
            )
        self._adopt(successor)
        return True

    def _adopt(self, document: Document) -> None:
        """Act on a document from the next request on."""
        if document == self._document:  # not by version: a store that went back may have taken another state since
            return
        before, state = self._document.state, document.state
        self._document = document
        self._traffic.adopt(state)
        if state is None or before is None or state.window != before.window:
            self._counts = Counter()
        metrics.show(state, in_force=self._traffic.in_force)
        _log.info("rollout state", version=document.version, **self._summary())
        self._changed.set()
        self._changed = asyncio.Event()

    async def _keep_copy(self) -> None:
        if self._last_known is None:
            return
        kept = await self._last_known.read()
        if kept.version != self._document.version:
            try:
                await self._last_known.swap(kept.version, self._document)
            except TandemError as error:
                _log.error("last known rollout not kept", error=error.message)

    def _summary(self, state: State | None = None) -> dict[str, Any]:
        state = state or self._document.state
        if state is None:
            return {"in_force": self._traffic.in_force}
        return {
            "rollout": state.id,
            "phase": state.phase,
            "step": state.step,
            "stable": state.plan.stable,
            "canary": state.plan.canary,
            "in_force": state.in_force,
        }

    def _lost(self, error: TandemError) -> None:
        if self._reachable:
            _log.error("rollout store lost, the rollout in force stays", reason=error.reason, error=error.message)
        self._reachable = False
        metrics.STORE_UP.set(0)

    def _found(self) -> None:
        if not self._reachable:
            _log.info("rollout store found again")
        self._reachable = True
        metrics.STORE_UP.set(1)


def _totals(counts: Counts) -> dict[str, int]:
    """Return the plain sums, without the buckets of times."""
    return {name: count for name, count in sorted(counts.items()) if name.count("/") == 1}
