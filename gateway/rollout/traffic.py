"""Puts every request on one release for the whole of its life, and counts how it went there."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from chassis.deadline import Deadline
from chassis.errors import (
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TandemError,
    Unauthenticated,
)
from chassis.request_id import current_request_id, new_request_id
from gateway.answer import Report
from gateway.rollout.policy import Arm, Counts, Outcome, Phase, State, counts_of, takes_canary
from gateway.rollout.tally import Tally
from gateway.stages import Release, Releases

# How early the event loop's timers may ring, seconds.
_TIMER_S = 0.01
# What a client did wrong says nothing about the release it was put on.
_CLIENTS_OWN = (InvalidArgument, NotFound, Unauthenticated, PermissionDenied, Cancelled)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The release of one request."""

    release: Release
    arm: Literal["stable", "canary"] | None  # None for a pinned request, and where no rollout runs: it counts nowhere
    window: str = ""  # the stretch of the rollout it counts in
    mirror_to: str | None = None  # the release that is asked the same without showing its answer


class Traffic:
    """The requests of this gateway by release. For one event loop."""

    def __init__(self, releases: Releases, draw: Callable[[], float] = random.random) -> None:
        """Put everything on the default release until a rollout says otherwise.

        Args:
            releases: opens what is chosen.
            draw: a number in [0, 1) for what is left to chance, which requests are mirrored.
        """
        self._releases = releases
        self._draw = draw
        self.own_name = releases.default_name  # the release of the settings, which always stays
        self._state: State | None = None
        self._counts: Counts = Counter()
        self._num_on: Counter[str] = Counter()
        self._tallies: set[Tally] = set()  # of the requests under way that will count

    @property
    def in_force(self) -> str:
        """The release that answers what no canary takes."""
        return self._state.in_force if self._state is not None else self.own_name

    @property
    def offered(self) -> tuple[str, ...]:
        """The releases a request can be on: those of the rollout, and the one of the settings."""
        needed = self._state.needed if self._state is not None else ()
        return tuple(dict.fromkeys((*needed, self.own_name)))

    @property
    def in_use(self) -> tuple[str, ...]:
        """The releases that requests are on."""
        return tuple(sorted(name for name, count in self._num_on.items() if count))

    @property
    def waiting(self) -> dict[str, int]:
        """The requests of the running step that have no first token yet, by arm."""
        window = self._state.window if self._state is not None else ""
        return dict(Counter(one.arm for one in self._tallies if one.is_waiting and one.window == window))

    def adopt(self, state: State | None) -> None:
        """Act on `state` from the next request on; requests under way stay where they are."""
        if state is None or self._state is None or state.window != self._state.window:
            self._counts = Counter()
        self._state = state
        self._releases.offer(self.offered, default_name=self.in_force)

    def take_counts(self) -> Counts:
        """Return what was counted since the last call."""
        taken, self._counts = self._counts, Counter()
        return taken

    def add(self, window: str, counts: Counts) -> None:
        """Add to what is counted, unless its window is over."""
        if self._state is not None and self._state.window == window:
            self._counts.update(counts)

    @asynccontextmanager
    async def keep_open(self, name: str) -> AsyncIterator[Release]:
        """Yield a release that stays open for the block.

        Raises:
            TandemError: it cannot be read here.
        """
        self._num_on[name] += 1
        try:
            yield await self._open(name)
        finally:
            self._num_on[name] -= 1

    async def release_for(self, pin: str | None) -> Release:
        """Return the release that answers a question about prompts.

        Raises:
            NotFound: reason 'UNKNOWN_RELEASE'.
        """
        return await self._open(self.in_force if pin is None else self._releases.resolve_pin(pin))

    @asynccontextmanager
    async def route(
        self, routing_key: str, pin: str | None, *, deadline: Deadline, report: Report
    ) -> AsyncIterator[Choice]:
        """Choose the release of a request, hold it open for the block, and count how the block ends.

        Args:
            routing_key: the client's; empty stands for a conversation of this one request.
            pin: the release the client asks for; None leaves it to the rollout.
            deadline: the request's; passing it is the release's fault, leaving early is not.
            report: filled in while the request runs.

        Raises:
            NotFound: reason 'UNKNOWN_RELEASE'.
        """
        name, arm = self._choose(routing_key, pin)
        state = self._state
        if arm is None or state is None:
            async with self.keep_open(name) as release:
                yield Choice(release=release, arm=None)
            return
        mirror_to = self._mirror(arm, state)
        with self._counted(arm, state, report, deadline):
            async with self.keep_open(name) as release:
                yield Choice(release=release, arm=arm, window=state.window, mirror_to=mirror_to)

    def count(self, arm: Arm, window: str, outcome: Outcome) -> None:
        """Count how a request went, unless its window is over."""
        self.add(window, counts_of(arm, outcome))

    @contextmanager
    def _counted(self, arm: Arm, state: State, report: Report, deadline: Deadline) -> Iterator[None]:
        """Count how the block ends, or that it hangs."""
        tally = Tally(
            partial(self.count, arm, state.window),
            report,
            arm=arm,
            window=state.window,
            overdue_s=state.plan.guard.overdue_s,
        )
        self._tallies.add(tally)
        try:
            yield
        except asyncio.CancelledError:
            if deadline.remaining_s() < _TIMER_S:
                tally.end(failed=True)
            raise
        except Exception as error:
            if not isinstance(error, _CLIENTS_OWN):
                tally.end(failed=True)
            raise
        else:
            tally.end(failed=False)
        finally:
            tally.close()
            self._tallies.discard(tally)

    async def _open(self, name: str) -> Release:
        try:
            return await self._releases.open(name)
        except (InvalidArgument, NotFound) as error:  # whoever set the rollout named it, and no client
            raise FailedPrecondition(error.message, reason=error.reason, where=error.where) from error

    def _choose(self, routing_key: str, pin: str | None) -> tuple[str, Literal["stable", "canary"] | None]:
        if pin is not None:
            return self._releases.resolve_pin(pin), None
        state = self._state
        if state is None or state.phase is not Phase.RUNNING:
            return self.in_force, None
        key = routing_key or current_request_id() or new_request_id()
        if takes_canary(key, state.id, state.weight_percent):
            return state.plan.canary, "canary"
        return state.plan.stable, "stable"

    def _mirror(self, arm: Arm, state: State) -> str | None:
        """Return where a request is mirrored to, where chance and the plan will have it."""
        is_drawn = arm == "stable" and self._draw() * 100 < state.plan.shadow_percent
        return state.plan.canary if is_drawn else None


def is_clients_own(error: TandemError) -> bool:
    """Say whether an error is its client's doing, and no release's."""
    return isinstance(error, _CLIENTS_OWN)
