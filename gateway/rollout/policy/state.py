"""The state of a rollout, which stores keep as JSON."""

from enum import StrEnum

from pydantic import Field
from pydantic.dataclasses import dataclass

from gateway.rollout.policy.guard import Finding, Metric
from gateway.rollout.policy.plan import FULL, STRICT, Plan, Step
from gateway.rollout.policy.probing import Probing

MAX_CHANGES = 64


class Phase(StrEnum):
    """Phase of a rollout."""

    PREPARING = "preparing"  # the canary's models load, then both releases answer the probes
    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Event(StrEnum):
    """Kind of a change."""

    SET = "set"
    STARTED = "started"
    ADVANCED = "advanced"
    HELD = "held"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Change:
    """One change of a rollout, and its reason."""

    number: int  # from 1, over all rollouts of the store
    at_s: float  # Unix time
    event: Event
    reason: str
    weight_percent: float  # after the change
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Looks:
    """The guard's looks at the running step.

    Each look tests every metric once.
    """

    taken: int = 0
    next_at: int = 0  # comparable requests at which the next look is due
    final_taken: int = 0  # looks after the end of the step, which decide on promotion
    final_next_at: int = 0
    within: tuple[Metric, ...] = ()  # metrics shown to be within their bounds


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class State:
    """A rollout, from its plan to its end."""

    id: str = Field(min_length=1)
    plan: Plan
    phase: Phase
    in_force: str  # the release that answers all requests the canary does not take
    step: int = Field(default=0, ge=0)
    step_started_s: float  # Unix time
    looks: Looks = Looks()
    changes: tuple[Change, ...] = Field(min_length=1, max_length=MAX_CHANGES)
    probing: Probing | None = Field(default=None, exclude_if=lambda value: value is None)  # None before it

    @property
    def is_live(self) -> bool:
        """Whether the rollout is neither promoted nor rolled back."""
        return self.phase in (Phase.PREPARING, Phase.RUNNING)

    @property
    def current_step(self) -> Step:
        """The running step, or the last one that ran."""
        return self.plan.steps[self.step]

    @property
    def weight_percent(self) -> float:
        """The share of conversations the canary answers."""
        if self.phase is Phase.PROMOTED:
            return FULL
        return self.current_step.weight_percent if self.phase is Phase.RUNNING else 0.0

    @property
    def window(self) -> str:
        """Name of the running step. Its requests are counted together."""
        return f"{self.id}/{self.step}"

    @property
    def needed(self) -> tuple[str, ...]:
        """The releases that answer requests now or will soon."""
        return (self.plan.stable, self.plan.canary) if self.is_live else (self.in_force,)
