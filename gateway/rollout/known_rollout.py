"""The rollout as one gateway knows it, and acts on it."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from chassis.errors import FailedPrecondition
from gateway.rollout import decision_log
from gateway.rollout.policy import Counts, Phase, Probing, State, controller
from gateway.rollout.store_health import StoreHealth
from gateway.rollout.stored_format import Document, Heartbeat
from gateway.rollout.traffic import Traffic

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The rollout as this gateway knows it."""

    state: State | None
    in_force: str
    counts: Counts  # of the running step, over all gateways
    store_reachable: bool
    is_unconfirmed: bool = False  # in force at this gateway only, until the store can take it
    probing: Probing | None = None  # the result of the probes, or their answers so far


class KnownRollout:
    """A document, and the traffic that follows it.

    For one event loop.
    """

    def __init__(self, traffic: Traffic) -> None:
        """Start without a rollout.

        Args:
            traffic: routes by the state.
        """
        self._traffic = traffic
        self._document = Document()
        self._counts = Counts()
        self._health = StoreHealth()
        self._changed = asyncio.Event()
        self.heartbeats: list[Heartbeat] = []  # of all living gateways

    @property
    def view(self) -> View:
        """The rollout as this gateway knows it now."""
        return View(
            state=self._document.state,
            in_force=self._traffic.in_force,
            counts=self._counts,
            store_reachable=self._health.is_good,
            is_unconfirmed=self._document.is_unconfirmed,
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

    def _adopt(self, document: Document) -> None:
        """Act on a document from the next request on.

        Nothing but its confirmation ends a rollback that only this gateway has.
        """
        # Compare whole documents. A store that lost data may have another state of the same version.
        if document != self._document and not self._document.is_unconfirmed:
            self._replace(document)

    def _replace(self, document: Document) -> None:
        before, state = self._document.state, document.state
        self._document = document
        self._traffic.adopt(state)
        if state is None or before is None or state.window != before.window:
            self._counts = Counts()
        _log.info("rollout state", version=document.version, **self._log_fields())
        self._changed.set()
        self._changed = asyncio.Event()

    def _act_alone(self, following: State) -> None:
        """Act on a decision before the store has it."""
        counts = self._counts
        self._adopt(self._document.followed_by(following, is_unconfirmed=True))
        decision_log.write(following, counts)

    def _judge_alone(self) -> None:
        """Roll a plainly bad canary back, also without the store.

        This gateway knows its own requests since it last reached the store. It never advances alone.
        """
        state = self._document.state
        if state is None or state.phase is not Phase.RUNNING:
            return
        own = self._traffic.drain_counts()
        self._traffic.add_counts(state.window, own)  # for the store
        try:
            # The step is not over, so this is no advance.
            following = controller.tick(state, self._counts + own, time.time(), elapsed_s=-1)
        except Exception as error:
            self._health.note_problem(error)
            return
        if following is None:
            return
        if following.phase is Phase.ROLLED_BACK:
            self._act_alone(following)
        else:  # a look, which the next one must know of
            self._adopt(Document(version=self.version, state=following, unknown=self._document.unknown))

    def _log_fields(self) -> dict[str, Any]:
        return decision_log.fields(self._document.state, in_force=self._traffic.in_force)


def existing(state: State | None) -> State:
    """Return the state, which must exist.

    Raises:
        FailedPrecondition: reason 'NO_ROLLOUT'.
    """
    if state is None:
        raise FailedPrecondition("No rollout runs. Set one first.", reason="NO_ROLLOUT")
    return state
