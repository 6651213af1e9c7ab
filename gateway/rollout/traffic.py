"""Route every request to one release, and count its outcome."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

from prometheus_client import Counter as Counted
from prometheus_client import Gauge, Summary

from chassis.deadline import Deadline
from chassis.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound
from chassis.request_id import current_request_id, new_request_id
from gateway.answer import Report
from gateway.rollout.blame import is_client_error, is_constraint_failure
from gateway.rollout.counted_request import CountedRequest
from gateway.rollout.policy import Arm, Counts, Outcome, Phase, State, takes_canary
from gateway.rollout.recent_answers import RecentAnswers
from gateway.rollout.shared_evidence import SharedEvidence, UseKey
from gateway.rollout.stable_pace import StablePace
from gateway.stages import Pin, Release, Releases

WEIGHT = Gauge("tandem_rollout_weight_percent", "Share of conversations that each release answers.", ["release"])
SIGNS = Counted(
    "tandem_rollout_signs", "Answers with a sign of a sick model, while a rollout runs, by sign.", ["release", "sign"]
)
SURPRISE = Summary(
    "tandem_rollout_surprise_nats",
    "Mean negative log-probability of an answer's tokens, natural logarithm, of the answers that were measured.",
    ["release"],
)
PHASE = Gauge("tandem_rollout_phase", "1 for the current phase of the rollout, else 0.", ["phase"])

# Timers of the event loop may fire this early, seconds.
_TIMER_PRECISION_S = 0.01
_NEAR_END = 0.1  # the last part of a request's time
# Of the requests in a rollout, whose tokens' log-probabilities are asked for. They cost the decoder a little.
_LOGPROB_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The release chosen for one request."""

    release: Release
    arm: Literal["stable", "canary"] | None  # None if it is not counted: a pinned request, or no rollout
    window: str = ""  # the step of the rollout it counts in
    other: str = ""  # the other release of the rollout
    is_mirrored: bool = False  # whether the other release also gets the request, without showing its answer
    counts: bool = True  # whether its outcome is counted. See `Evidence`.


class Traffic:
    """The requests of this gateway, by release.

    For one event loop.
    """

    def __init__(
        self, releases: Releases, draw: Callable[[], float] = random.random, *, trusts_callers: bool = False
    ) -> None:
        """Route everything to the default release.

        Args:
            releases: opens releases by name.
            draw: returns a random number in [0, 1), which decides whether a request is mirrored.
            trusts_callers: count every request, see `Evidence`.
        """
        self._releases = releases
        self._draw = draw
        self.configured_name = releases.default_name  # the release of the settings. It always stays.
        self._state: State | None = None
        self._counts = Counts()
        self._num_in_flight: Counter[str] = Counter()  # by release
        self._counted_requests: set[CountedRequest] = set()
        self._recent_answers = RecentAnswers()
        self._evidence = SharedEvidence(trusts_callers=trusts_callers)
        self._pace = StablePace()

    def share_keys(self, use_key: UseKey) -> None:
        """Share the routing keys seen with other gateways."""
        self._evidence.share(use_key)

    @property
    def in_force(self) -> str:
        """The release that answers, unless the canary does."""
        return self._state.in_force if self._state is not None else self.configured_name

    @property
    def offered(self) -> tuple[str, ...]:
        """The releases of the rollout and of the settings."""
        needed = self._state.needed if self._state is not None else ()
        return tuple(dict.fromkeys((*needed, self.configured_name)))

    @property
    def in_use(self) -> tuple[str, ...]:
        """The releases with requests in flight."""
        return tuple(sorted(name for name, count in self._num_in_flight.items() if count))

    @property
    def weights_percent(self) -> dict[str, float]:
        """Share of conversations that each release answers."""
        state = self._state
        if state is None or state.phase is not Phase.RUNNING:
            return {self.in_force: 100.0}
        return {self.in_force: 100 - state.weight_percent, state.plan.canary: state.weight_percent}

    @property
    def waiting(self) -> dict[Arm, int]:
        """Requests of the running step without a first token."""
        window = self._state.window if self._state is not None else ""
        return dict(Counter(one.arm for one in self._counted_requests if one.is_waiting and one.window == window))

    def num_in_flight(self, name: str) -> int:
        """Return a release's requests in flight at this gateway."""
        return self._num_in_flight[name]

    def adopt(self, state: State | None) -> None:
        """Route new requests by `state`.

        Requests in flight stay on their release.
        """
        if state is None or self._state is None or state.window != self._state.window:
            self._counts = Counts()
            self._recent_answers.clear()
            self._evidence.begin_step()
        if state is None or self._state is None or state.id != self._state.id:
            self._evidence.begin_rollout()
            self._pace = StablePace()
        self._state = state
        canary = state.plan.canary if state is not None else None
        on_trial = canary if canary != self.in_force else None
        self._releases.offer(self.offered, default_name=self.in_force, on_trial=on_trial)
        self._set_gauges()

    def drain_counts(self) -> Counts:
        """Return the counts since the last call."""
        drained, self._counts = self._counts, Counts()
        return drained

    def add_counts(self, window: str, counts: Counts) -> None:
        """Add counts, unless their step is over."""
        if self._state is not None and self._state.window == window:
            self._counts.update(counts)

    def count(self, arm: Arm, window: str, outcome: Outcome) -> None:
        """Count how a request ended, unless its step is over."""
        counts = Counts()
        counts.add_outcome(arm, outcome)
        self.add_counts(window, counts)

    @asynccontextmanager
    async def keep_open(self, name: str) -> AsyncIterator[Release]:
        """Yield a release that stays open for the block.

        Raises:
            TandemError: this gateway cannot read the release.
        """
        with self._in_flight(name):
            yield await self._open(name)

    @contextmanager
    def _in_flight(self, name: str) -> Iterator[None]:
        self._num_in_flight[name] += 1
        try:
            yield
        finally:
            self._num_in_flight[name] -= 1

    async def release_for(self, pin: Pin | None) -> Release:
        """Return the release that counts tokens of a prompt.

        Raises:
            NotFound, PermissionDenied: see `Releases.resolve_pin`.
        """
        return await self._open(self.in_force if pin is None else self._releases.resolve_pin(pin))

    @asynccontextmanager
    async def route(
        self, routing_key: str, pin: Pin | None, *, deadline: Deadline, report: Report, caller: str = ""
    ) -> AsyncIterator[Choice]:
        """Choose a request's release and count how the block ends.

        The release stays open for the block.

        Args:
            routing_key: names a conversation. An empty one makes the request a conversation of its own.
            pin: the release the client asks for, or None to let the rollout choose.
            deadline: of the request. A passed deadline counts as an error of the release, a cancellation does not.
            report: filled in while the request runs.
            caller: names who sends the request. Nobody weighs much alone.

        Raises:
            NotFound, PermissionDenied: see `Releases.resolve_pin`.
        """
        key = routing_key or current_request_id() or new_request_id()
        name, arm = self._choose(key, pin)
        state = self._state
        if arm is None or state is None:
            async with self.keep_open(name) as release:
                yield Choice(release=release, arm=None)
            return
        other, share = (
            (state.plan.canary, state.plan.shadow_percent)
            if arm == "stable"
            else (state.plan.stable, state.plan.shadow_canary_percent)
        )
        is_mirrored = self._draw() * 100 < share
        report.measures_logprob = self._draw() < _LOGPROB_SHARE
        with self._in_flight(name):  # from now on, as the next line can wait
            counts = await self._evidence.counts(arm, state.id, key, caller)
            with self._counted(arm, state, report, deadline) if counts else nullcontext():
                release = await self._open(name)
                yield Choice(
                    release=release, arm=arm, window=state.window, other=other, is_mirrored=is_mirrored, counts=counts
                )

    @contextmanager
    def _counted(self, arm: Arm, state: State, report: Report, deadline: Deadline) -> Iterator[None]:
        """Count how the block ends, or that it is overdue."""
        time_s = deadline.remaining_s()

        def count(outcome: Outcome) -> None:
            if arm == "stable" and not outcome.failed:
                self._pace.add(outcome)
            if not outcome.failed and self._recent_answers.add(arm, report.signs):
                outcome = replace(outcome, signs=(*outcome.signs, "same_text"))
            _export(state.plan.canary if arm == "canary" else state.plan.stable, outcome)
            self.count(arm, state.window, outcome)

        request = CountedRequest(
            count,
            report,
            arm=arm,
            window=state.window,
            overdue_s=state.plan.guard.overdue_s,
        )
        self._counted_requests.add(request)
        try:
            yield
        except BaseException as error:
            failed = self._has_failed(error, report, deadline, time_s, state.plan.guard.overdue_s)
            if failed is not None:
                request.end(failed=failed)
            raise
        else:
            request.end(failed=False)
        finally:
            request.close()
            self._counted_requests.discard(request)

    def _has_failed(
        self, error: BaseException, report: Report, deadline: Deadline, time_s: float, overdue_s: float
    ) -> bool | None:
        """Return whether the release failed, None without blame."""
        left_s = deadline.remaining_s()
        is_cancelled = isinstance(error, asyncio.CancelledError)
        # A stage notices the deadline, too, and may be first.
        if is_cancelled or (isinstance(error, DeadlineExceeded) and left_s < _NEAR_END * time_s):
            has_passed = not is_cancelled or left_s < _TIMER_PRECISION_S
            is_missed = has_passed and not report.is_sending and self._pace.allows(time_s, report, overdue_s)
            return True if is_missed else None
        if is_constraint_failure(error):  # `Mirror` finds out whether the release is at fault
            return False
        return True if isinstance(error, Exception) and not is_client_error(error) else None

    async def _open(self, name: str) -> Release:
        try:
            return await self._releases.open(name)
        except (InvalidArgument, NotFound) as error:  # an operator named the release, so it is no client error
            raise FailedPrecondition(error.message, reason=error.reason, where=error.where) from error

    def _choose(self, key: str, pin: Pin | None) -> tuple[str, Literal["stable", "canary"] | None]:
        if pin is not None:
            return self._releases.resolve_pin(pin), None
        state = self._state
        if state is None or state.phase is not Phase.RUNNING:
            return self.in_force, None
        if takes_canary(key, state.id, state.weight_percent):
            return state.plan.canary, "canary"
        return state.plan.stable, "stable"

    def _set_gauges(self) -> None:
        WEIGHT.clear()
        for name, weight_percent in self.weights_percent.items():
            WEIGHT.labels(name).set(weight_percent)
        for phase in Phase:
            PHASE.labels(phase).set(self._state is not None and self._state.phase is phase)


def _export(release: str, outcome: Outcome) -> None:
    """Add an answer's signs and surprise to the metrics."""
    for sign in outcome.signs:
        SIGNS.labels(release, sign).inc()
    if outcome.mean_logprob is not None:
        SURPRISE.labels(release).observe(-outcome.mean_logprob)
