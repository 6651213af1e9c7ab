"""What an operator asks for: the releases, the steps, and the guard. Plain data that checks itself."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from chassis.errors import InvalidArgument

MAX_STEPS = 32
FULL = 100.0  # percent

# A fraction of requests, and a multiple of a time; neither bound means anything at its ends.
_Increase = Field(default=None, gt=0, lt=1, allow_inf_nan=False)
_Ratio = Field(default=None, gt=1, allow_inf_nan=False)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Record):
    """One stretch of a rollout; it ends when both of its lengths are reached."""

    weight_percent: float = Field(ge=0, le=FULL, allow_inf_nan=False)  # share of conversations the canary answers
    seconds: float = Field(default=0, ge=0, allow_inf_nan=False)
    requests: int = Field(default=0, ge=0)  # answers of the canary; mirrored ones where the weight is 0


class Guard(_Record):
    """How much worse than stable a canary may be; a metric without a bound is not judged."""

    max_error_rate_increase: float | None = _Increase
    max_empty_rate_increase: float | None = _Increase
    max_first_token_ratio: float | None = _Ratio
    max_inter_token_ratio: float | None = _Ratio
    min_requests: int = Field(default=50, ge=10)  # of each release in a step, before anything is judged
    overdue_s: float = Field(default=10, gt=0, le=600)  # a request to which nothing comes for so long counts as failed
    false_rollback: float = Field(default=0.01, gt=0, le=0.5)  # of a canary within its bounds, over the whole rollout
    false_promotion: float = Field(default=0.05, gt=0, le=0.5)  # of a canary beyond a bound

    @property
    def num_bounds(self) -> int:
        """How many metrics are judged."""
        bounds = (
            self.max_error_rate_increase,
            self.max_empty_rate_increase,
            self.max_first_token_ratio,
            self.max_inter_token_ratio,
        )
        return sum(bound is not None for bound in bounds)

    @model_validator(mode="after")
    def _judges_something(self) -> Self:
        if self.num_bounds == 0:
            raise PydanticCustomError("EMPTY_GUARD", "it sets no bound; a canary would be promoted whatever it does")
        return self


class Plan(_Record):
    """One rollout as it was asked for."""

    stable: str  # a release's name: a tag, or 'vision tag,language tag'
    canary: str
    steps: tuple[Step, ...] = Field(max_length=MAX_STEPS)
    guard: Guard
    shadow_percent: float = Field(default=0, ge=0, le=FULL, allow_inf_nan=False)  # of stable's requests

    @property
    def num_judged_steps(self) -> int:
        """Steps in which both releases answer, so that there is something to compare."""
        return sum(0 < step.weight_percent < FULL for step in self.steps)

    @model_validator(mode="after")
    def _is_a_way_from_one_to_another(self) -> Self:
        if self.stable == self.canary:
            raise PydanticCustomError("SAME_RELEASE", "the canary is the stable release itself")
        weights = [step.weight_percent for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise PydanticCustomError("BAD_STEPS", "the weights must rise from step to step")
        if not weights or weights[-1] != FULL:
            raise PydanticCustomError("BAD_STEPS", "the last step must have a weight of 100 percent")
        if self.num_judged_steps == 0:
            raise PydanticCustomError("BAD_STEPS", "no step lets both releases answer, so nothing could be compared")
        if weights[0] == 0 and self.shadow_percent == 0:
            raise PydanticCustomError(
                "BAD_STEPS", "a first step of 0 percent does nothing unless requests are mirrored"
            )
        return self


def read_plan(fields: Mapping[str, Any]) -> Plan:
    """Check a plan.

    Raises:
        InvalidArgument: reason 'EMPTY_GUARD', 'BAD_STEPS', 'SAME_RELEASE', or 'BAD_PLAN' for a single value.
    """
    try:
        return Plan.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Our own kinds are written in capitals, pydantic's are not.
        reason = first["type"] if first["type"].isupper() else _reason_of(first["loc"])
        path = ".".join(("plan", *map(str, first["loc"])))
        raise InvalidArgument(f"The plan is not valid: {path}: {first['msg']}.", reason=reason, field=path) from None


def _reason_of(location: tuple[int | str, ...]) -> str:
    return "BAD_STEPS" if location[:1] == ("steps",) else "BAD_PLAN"
