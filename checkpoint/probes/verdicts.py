"""Count verdicts of answers, in all and by slice."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from checkpoint.probes.file import Probe

Verdict = Literal["right", "wrong", "unjudged"]
ALL = ""  # the name of the slice that has every probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Verdicts in one slice."""

    slice: str  # '' for all probes, else such as 'topic=colour'
    right: int
    wrong: int
    unjudged: int  # no answer, or no verdict of the grader

    @property
    def share_right(self) -> float:
        """Share of right answers among the judged, 0 to 1."""
        return self.right / max(1, self.right + self.wrong)


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer with its verdict."""

    probe: Probe
    answer: str
    verdict: Verdict
    problem: str = ""  # the reason of no verdict


class Verdicts:
    """The answers of one release to all probes."""

    def __init__(self, judged: Iterable[Judged]) -> None:
        self.judged = tuple(judged)

    def scores(self) -> list[Score]:
        """Return the scores, all probes first, then by slice."""
        names = sorted({name for one in self.judged for name in one.probe.slice_names})
        return [self._score(name) for name in (ALL, *names)]

    def wrong(self) -> list[Judged]:
        """Return the answers that are not right, in order."""
        return [one for one in self.judged if one.verdict != "right"]

    def _score(self, name: str) -> Score:
        verdicts = [one.verdict for one in self.judged if name == ALL or name in one.probe.slice_names]
        return Score(
            slice=name,
            right=verdicts.count("right"),
            wrong=verdicts.count("wrong"),
            unjudged=verdicts.count("unjudged"),
        )
