"""Judge a canary by its answers to probes, paired with stable's.

The canary's quality is the share of probes that it answers wrong. One bad slice of questions is also enough for a
rollback, so half of the allowance is for all probes and half is divided among the slices. A promotion needs a small
drop over all probes. A probe without a verdict must not help the canary: for a promotion it counts as lost.

Probes that are not asked before traffic follow in the steps while quality is open, also those that an operator adds
then. They come in a random order and no look divides the test's level, so it does not matter where the first part ends.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from gateway.rollout.policy.guard import Finding, Levels, Metric, Verdict, rollback_level, verdict_of
from gateway.rollout.policy.paired import p_drop_above, p_drop_below
from gateway.rollout.policy.plan import STRICT, Plan

MAX_LOST_IDS = 20
_IDS_IN_REASON = 5


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PairedCount:
    """Answers of both releases to the probes of one slice."""

    slice: str = ""  # '' for all probes, else such as 'topic=colour'
    total: int = Field(ge=0)  # probes with a verdict on both answers
    stable_wrong: int = Field(ge=0)
    canary_wrong: int = Field(ge=0)
    lost: int = Field(ge=0)  # only the canary's answer is wrong
    unjudged: int = Field(default=0, ge=0)  # probes without one of the verdicts

    @property
    def gained(self) -> int:
        """Probes that only stable answered wrong."""
        return self.lost - (self.canary_wrong - self.stable_wrong)


def _is_default(value: object) -> bool:
    return not value


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Probing:
    """The answers to the probes so far."""

    counts: tuple[PairedCount, ...] = ()  # of all probes, then of each slice. Empty without probes
    lost: tuple[str, ...] = ()  # ids of the first probes that only the canary answered wrong
    problem: str = ""  # why there are no probes, or why verdicts are missing
    remaining: int = Field(default=0, ge=0, exclude_if=_is_default)  # probes that are not asked yet
    asked: str = Field(default="", exclude_if=_is_default)  # a short name of each asked probe, see `ProbeRunner`

    @property
    def num_asked(self) -> int:
        """Number of probes that both releases were asked."""
        return self.counts[0].total + self.counts[0].unjudged if self.counts else 0


ProbeVerdict = Literal["right", "wrong", "unjudged"]


class PairCounter:
    """Counts the pairs of verdicts on the same probes."""

    def __init__(self, slices: Iterable[str] = (), before: Probing | None = None) -> None:
        """Begin, or go on with earlier counts.

        Args:
            slices: of all probes, such as 'topic=colour'. They share the allowance from the first probe on.
            before: the counts so far. If there are some, no slice is added to theirs, or the shares would change.
        """
        counted = before.counts if before is not None else ()
        names = [count.slice for count in counted] or ["", *slices]
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        self._takes_slices = not counted
        self._lost: list[str] = list(before.lost) if before is not None else []
        for count in counted:
            fields = ("total", "stable_wrong", "canary_wrong", "lost", "unjudged")
            self._counts[count.slice] = Counter({field: getattr(count, field) for field in fields})

    def add(self, probe_id: str, slices: Iterable[str], stable: ProbeVerdict, canary: ProbeVerdict) -> None:
        """Add the verdicts on both answers to one probe.

        Args:
            probe_id: its id.
            slices: such as 'topic=colour'.
            stable: on stable's answer.
            canary: on the canary's answer.
        """
        is_judged = "unjudged" not in (stable, canary)
        is_lost = (stable, canary) == ("right", "wrong")
        if is_lost and len(self._lost) < MAX_LOST_IDS:
            self._lost.append(probe_id)
        for name in ("", *slices):
            if name not in self._counts and not self._takes_slices:
                continue
            count = self._counts.setdefault(name, Counter())
            count["total"] += is_judged
            count["unjudged"] += not is_judged
            count["stable_wrong"] += is_judged and stable == "wrong"
            count["canary_wrong"] += is_judged and canary == "wrong"
            count["lost"] += is_lost

    def probing(self, problem: str = "", *, remaining: int = 0, asked: str = "") -> Probing:
        """Return the counts so far. Arguments are fields of `Probing`."""
        return Probing(
            counts=tuple(
                PairedCount(
                    slice=name,
                    total=count["total"],
                    stable_wrong=count["stable_wrong"],
                    canary_wrong=count["canary_wrong"],
                    lost=count["lost"],
                    unjudged=count["unjudged"],
                )
                for name, count in sorted(self._counts.items())
            ),
            lost=tuple(self._lost),
            problem=problem,
            remaining=remaining,
            asked=asked,
        )


def judge_probes(probing: Probing | None, plan: Plan) -> tuple[Finding, ...]:
    """Return the findings for all probes and each slice.

    There is none without probes, or without a bound.
    """
    bound = plan.guard.max_quality_drop
    if probing is None or bound is None:
        return ()
    allowance = rollback_level(plan, Metric.QUALITY)
    # The test holds at every look, so no look divides these.
    levels = [allowance / 2, *[allowance / 2 / max(1, len(probing.counts) - 1)] * (len(probing.counts) - 1)]
    return tuple(
        _finding(count, bound, level, plan.guard.false_promotion)
        for count, level in zip(probing.counts, levels, strict=False)
    )


def is_open(probing: Probing, plan: Plan) -> bool:
    """Return whether further probes can change the verdict.

    They can until a drop is beyond the bound, or within it over all probes and in every slice.
    """
    verdicts = {finding.verdict for finding in judge_probes(probing, plan)}
    return Verdict.OPEN in verdicts and Verdict.BEYOND not in verdicts


def first_beyond(findings: tuple[Finding, ...]) -> Finding | None:
    """Return the first finding beyond its bound."""
    return next((finding for finding in findings if finding.verdict is Verdict.BEYOND), None)


def describe(probing: Probing | None, plan: Plan) -> str:
    """Return a sentence about the probes, for the history."""
    if probing is None or plan.guard.max_quality_drop is None:
        return ""
    problem = f" {probing.problem}" if probing.problem else ""
    if not probing.counts:
        return problem
    count = probing.counts[0]
    missing = f", {count.unjudged} have no verdict" if count.unjudged else ""
    more = f" {probing.remaining} more follow in the steps." if probing.remaining else ""
    return (
        f" Of {probing.num_asked} probes it answers {count.canary_wrong} wrong, stable {count.stable_wrong}{missing}."
        f"{problem}{more}"
    )


def lost_probes(probing: Probing | None) -> str:
    """Return a sentence with the ids of lost probes."""
    if probing is None or not probing.lost:
        return ""
    shown = ", ".join(probing.lost[:_IDS_IN_REASON])
    more = probing.counts[0].lost - len(probing.lost[:_IDS_IN_REASON])
    return f" Lost probes: {shown}{f' and {more} more' if more > 0 else ''}."


def _finding(count: PairedCount, bound: float, level: float, false_promotion: float) -> Finding:
    """Test the drop in one slice."""
    p_beyond = p_drop_above(count.lost, count.gained, count.total, bound)
    total, lost = count.total + count.unjudged, count.lost + count.unjudged
    p_within = p_drop_below(lost, count.gained, total, bound)
    stable = count.stable_wrong / count.total if count.total else None
    canary = count.canary_wrong / count.total if count.total else None
    return Finding(
        metric=Metric.QUALITY,
        slice=count.slice,
        stable=stable,
        canary=canary,
        effect=canary - stable if stable is not None and canary is not None else None,
        bound=bound,
        p_beyond=p_beyond,
        p_within=p_within,
        verdict=verdict_of(p_beyond, p_within, Levels(beyond=level, within=false_promotion)),
    )
