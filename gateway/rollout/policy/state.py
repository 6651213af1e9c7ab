"""What stores keep of rollouts: plain frozen data that reads itself back from JSON."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from gateway.rollout.policy.guard import Finding, Metric
from gateway.rollout.policy.plan import FULL, Plan, Step

MAX_CHANGES = 64


class Phase(StrEnum):
    """Where a rollout stands."""

    PREPARING = "preparing"  # the canary's models are being loaded
    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Event(StrEnum):
    """What happened to a rollout."""

    SET = "set"
    STARTED = "started"
    ADVANCED = "advanced"
    HELD = "held"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Record):
    """One thing that happened, and why."""

    number: int  # from 1, over all rollouts of the store
    at_s: float  # Unix time
    event: Event
    reason: str
    weight_percent: float  # from then on
    findings: tuple[Finding, ...] = ()


class Looks(_Record):
    """How often the guard has looked at the numbers of one step, and when it looks again."""

    taken: int = 0
    next_at: int = 0  # comparable requests
    final_taken: int = 0  # after the step was over, for promotion
    final_next_at: int = 0
    within: tuple[Metric, ...] = ()  # shown so far to be within their bounds


class State(_Record):
    """A rollout and what has become of it."""

    id: str = Field(min_length=1)
    plan: Plan
    phase: Phase
    in_force: str  # the release that answers what no canary takes
    step: int = Field(default=0, ge=0)
    step_started_s: float  # Unix time
    looks: Looks = Looks()
    changes: tuple[Change, ...] = Field(min_length=1, max_length=MAX_CHANGES)

    @property
    def is_live(self) -> bool:
        """Whether it can still go either way."""
        return self.phase in (Phase.PREPARING, Phase.RUNNING)

    @property
    def current_step(self) -> Step:
        """The step that runs, or ran last."""
        return self.plan.steps[self.step]

    @property
    def weight_percent(self) -> float:
        """The share of conversations the canary answers."""
        if self.phase is Phase.PROMOTED:
            return FULL
        return self.current_step.weight_percent if self.phase is Phase.RUNNING else 0.0

    @property
    def window(self) -> str:
        """Name of the stretch whose requests are counted together."""
        return f"{self.id}/{self.step}"

    @property
    def needed(self) -> tuple[str, ...]:
        """The releases that answer requests, or soon will."""
        return (self.plan.stable, self.plan.canary) if self.is_live else (self.in_force,)
