"""The plan of a rollout: releases, steps and guard.

Plain data that validates itself when it is made.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from chassis.errors import InvalidArgument

MAX_STEPS = 32
FULL = 100.0  # percent
STRICT = ConfigDict(extra="forbid")  # of everything that is stored

PROBE_TIMEOUT_S = 300.0


def _is_none(value: object) -> bool:
    return value is None


def _is_zero(value: float) -> bool:
    return value == 0


# A difference of rates, and a ratio of times. Neither bound means anything at its limits.
_Increase = Field(default=None, gt=0, lt=1, allow_inf_nan=False)
_LaterIncrease = Field(default=None, gt=0, lt=1, allow_inf_nan=False, exclude_if=_is_none)
_Ratio = Field(default=None, gt=1, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Step:
    """One step of a rollout.

    It ends once both of its lengths are reached.
    """

    weight_percent: float = Field(ge=0, le=FULL, allow_inf_nan=False)  # share of conversations the canary answers
    seconds: float = Field(default=0, ge=0, allow_inf_nan=False)
    requests: int = Field(default=0, ge=0)  # answers of the canary, or mirrored requests in a step of weight 0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Guard:
    """How much worse than stable a canary may be.

    A metric without a bound is not judged.
    """

    max_error_rate_increase: float | None = _Increase
    max_empty_rate_increase: float | None = _Increase
    max_first_token_ratio: float | None = _Ratio
    max_inter_token_ratio: float | None = _Ratio
    # Highest share of wrong answers to probes, minus stable's. Fields that later versions added are stored if set.
    max_quality_drop: float | None = _LaterIncrease
    max_repetition_increase: float | None = _LaterIncrease
    max_wrong_script_increase: float | None = _LaterIncrease
    max_cut_off_increase: float | None = _LaterIncrease
    max_dislike_increase: float | None = _LaterIncrease
    max_constraint_increase: float | None = _LaterIncrease
    # Of the mean length of answers, up or down, and of the mean log-probability of their tokens, down.
    max_length_ratio: float | None = Field(default=None, gt=1, le=64, allow_inf_nan=False, exclude_if=_is_none)
    max_logprob_drop: float | None = Field(default=None, gt=0, lt=4, allow_inf_nan=False, exclude_if=_is_none)
    min_requests: int = Field(default=50, ge=10)  # of each release in a step, before the first look
    overdue_s: float = Field(default=10, gt=0, le=600)  # a request that gets no token for so long counts as failed
    false_rollback: float = Field(default=0.01, gt=0, le=0.5)  # chance for a canary within bounds, whole rollout
    false_promotion: float = Field(default=0.05, gt=0, le=0.5)  # chance for a canary beyond a bound
    # Longest time for the probes before traffic, after the models are loaded, and the most that are asked in it. 0 sets
    # no number. The others follow in the steps while quality is open.
    probe_timeout_s: float = Field(
        default=PROBE_TIMEOUT_S, gt=0, le=86_400, allow_inf_nan=False, exclude_if=lambda value: value == PROBE_TIMEOUT_S
    )
    probes_before_traffic: int = Field(default=0, ge=0, le=1_000_000, exclude_if=_is_zero)

    @property
    def num_bounds(self) -> int:
        """Number of metrics of live traffic that are judged."""
        bounds = (
            self.max_error_rate_increase,
            self.max_empty_rate_increase,
            self.max_first_token_ratio,
            self.max_inter_token_ratio,
            self.max_repetition_increase,
            self.max_wrong_script_increase,
            self.max_cut_off_increase,
            self.max_dislike_increase,
            self.max_constraint_increase,
            self.max_length_ratio,
            self.max_logprob_drop,
        )
        return sum(bound is not None for bound in bounds)

    @model_validator(mode="after")
    def _require_a_bound(self) -> Self:
        if self.num_bounds == 0:
            raise PydanticCustomError("EMPTY_GUARD", "set at least one bound, or every canary would be promoted")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Plan:
    """One rollout, as an operator set it."""

    stable: str  # name of a release: a tag, or 'vision tag,language tag'
    canary: str
    steps: tuple[Step, ...] = Field(max_length=MAX_STEPS)
    guard: Guard
    shadow_percent: float = Field(default=0, ge=0, le=FULL, allow_inf_nan=False)  # of stable's requests, mirrored
    # Of the canary's requests, which stable answers too.
    shadow_canary_percent: float = Field(default=0, ge=0, le=FULL, allow_inf_nan=False, exclude_if=_is_zero)

    @property
    def num_judged_steps(self) -> int:
        """Number of steps in which both releases answer."""
        return sum(0 < step.weight_percent < FULL for step in self.steps)

    @model_validator(mode="after")
    def _require_two_releases(self) -> Self:
        if self.stable == self.canary:
            raise PydanticCustomError("SAME_RELEASE", "name a canary other than the stable release")
        return self

    @model_validator(mode="after")
    def _require_rising_steps(self) -> Self:
        weights = [step.weight_percent for step in self.steps]
        if any(later <= earlier for earlier, later in pairwise(weights)):
            raise PydanticCustomError("BAD_STEPS", "the weights must rise from step to step")
        if not weights or weights[-1] != FULL:
            raise PydanticCustomError("BAD_STEPS", "the last step must have a weight of 100 percent")
        if self.num_judged_steps == 0:
            raise PydanticCustomError("BAD_STEPS", "add a step between 0 and 100 percent, or nothing can be compared")
        if weights[0] == 0 and self.shadow_percent == 0:
            raise PydanticCustomError("BAD_STEPS", "a first step of 0 percent needs mirrored requests: set a share")
        return self


_PLAN = TypeAdapter(Plan)


def read_plan(fields: Mapping[str, Any]) -> Plan:
    """Return a validated plan.

    Raises:
        InvalidArgument: reason 'EMPTY_GUARD', 'BAD_STEPS', 'SAME_RELEASE', or 'BAD_PLAN' for a single value.
    """
    with _invalid_plan():
        return _PLAN.validate_python(fields)


def with_releases(plan: Plan, *, stable: str, canary: str) -> Plan:
    """Return a plan for other releases, validated again.

    Raises:
        InvalidArgument: reason 'SAME_RELEASE'.
    """
    with _invalid_plan():
        return replace(plan, stable=stable, canary=canary)


@contextmanager
def _invalid_plan() -> Iterator[None]:
    """Raise a pydantic error as an InvalidArgument."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # Our own kinds of errors are upper case, those of pydantic are not.
        reason = first["type"] if first["type"].isupper() else _reason_of(first["loc"])
        path = ".".join(("plan", *map(str, first["loc"])))
        raise InvalidArgument(f"The plan is not valid: {path}: {first['msg']}.", reason=reason, field=path) from None


def _reason_of(location: tuple[int | str, ...]) -> str:
    return "BAD_STEPS" if location[:1] == ("steps",) else "BAD_PLAN"
