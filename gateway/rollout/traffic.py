"""Puts every request on one release for the whole of its life, and counts how it went there."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from chassis.errors import Cancelled, InvalidArgument, NotFound, PermissionDenied, TandemError, Unauthenticated
from chassis.request_id import current_request_id, new_request_id
from gateway.deadline import Deadline
from gateway.releases import Release, Releases
from gateway.report import Report
from gateway.rollout.choice import takes_canary
from gateway.rollout.counts import Arm, Counts, Kind, Outcome, counts_of
from gateway.rollout.state import Phase, State
from tandem.v1 import gateway_pb2

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
    async def hold(self, name: str) -> AsyncIterator[Release]:
        """Yield a release that stays open for the block."""
        self._num_on[name] += 1
        try:
            yield await self._releases.open(name)
        finally:
            self._num_on[name] -= 1

    async def release(self, pin: str | None) -> Release:
        """Return the release that answers a question about prompts.

        Raises:
            NotFound: reason 'UNKNOWN_RELEASE'.
        """
        return await self._releases.open(self.in_force if pin is None else self._releases.pinned(pin))

    @asynccontextmanager
    async def carry(
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
        window = self._state.window if arm and self._state is not None else ""
        try:
            async with self.hold(name) as release:
                yield Choice(release=release, arm=arm, window=window, mirror_to=self._mirror(arm))
        except asyncio.CancelledError:
            if deadline.remaining_s() < _TIMER_S:
                self.count(arm, window, outcome_of(report, failed=True))
            raise
        except Exception as error:
            if not isinstance(error, _CLIENTS_OWN):
                self.count(arm, window, outcome_of(report, failed=True))
            raise
        else:
            self.count(arm, window, outcome_of(report, failed=False))

    def count(self, arm: Arm | None, window: str, outcome: Outcome) -> None:
        """Count how a request went, unless it counts nowhere or its window is over."""
        if arm is not None:
            self.add(window, counts_of(arm, outcome))

    def _choose(self, routing_key: str, pin: str | None) -> tuple[str, Literal["stable", "canary"] | None]:
        if pin is not None:
            return self._releases.pinned(pin), None
        state = self._state
        if state is None or state.phase is not Phase.RUNNING:
            return self.in_force, None
        key = routing_key or current_request_id() or new_request_id()
        if takes_canary(key, state.id, state.weight_percent):
            return state.plan.canary, "canary"
        return state.plan.stable, "stable"

    def _mirror(self, arm: Arm | None) -> str | None:
        """Return where a request is mirrored to, where chance and the plan will have it."""
        state = self._state
        if arm != "stable" or state is None or self._draw() * 100 >= state.plan.shadow_percent:
            return None
        return state.plan.canary


def outcome_of(report: Report, *, failed: bool) -> Outcome:
    """Return how a request ended, as it is counted."""
    return Outcome(
        kind=_kind(report),
        failed=failed,
        empty=not failed and not report.has_text,
        first_token_s=report.first_token - report.started if report.first_token else None,
        inter_token_s=report.inter_token_s,
    )


def _kind(report: Report) -> Kind:
    if not report.images:
        return "text"
    encoded = any(image.cache_level == gateway_pb2.CACHE_LEVEL_MISS for image in report.images)
    return "pictures encoded" if encoded else "pictures at hand"


def is_clients_own(error: TandemError) -> bool:
    """Say whether an error is its client's doing, and no release's."""
    return isinstance(error, _CLIENTS_OWN)
