"""Ask a running release the probes, and compare two releases.

`compare` is for every command that makes a release from another: it asks both the same probes and returns the paired
difference with its interval.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from checkpoint.probes import Graded, Grader, Judged, Probe, Probes, Verdict, Verdicts
from gateway.rollout.policy import PairCounter, PairedCount, drop_interval
from tandem.client import AsyncClient, Image, Message
from tandem.errors import FailedPrecondition, InvalidArgument

_NUM_IN_FLIGHT = 4  # leaves room for users of the same gateway
_SHOWN_LOST = 5

OnAnswer = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """The paired difference between two releases' answers."""

    count: PairedCount  # 'stable' is the source, 'canary' the result
    lost: tuple[str, ...]  # ids of the first probes that only the result answered wrong
    low: float  # 95 % interval of the drop in right answers, as a share
    high: float

    def sentence(self, result: str, source: str) -> str:
        """Return the difference in words, with lost probes."""
        count = self.count
        drop = (count.lost - count.gained) / count.total if count.total else 0.0
        unjudged = f" {count.unjudged} more have no verdict." if count.unjudged else ""
        more = f" and {count.lost - _SHOWN_LOST} more" if count.lost > _SHOWN_LOST else ""
        lost = f" Lost: {', '.join(self.lost[:_SHOWN_LOST])}{more}." if self.lost else ""
        return (
            f"Of {count.total} probes, {result} loses {count.lost} and gains {count.gained} against {source}: "
            f"a drop of {100 * drop:.1f} points, 95 % interval {100 * self.low:.1f} to {100 * self.high:.1f}."
            f"{unjudged}{lost}"
        )


async def ask_probes(
    client: AsyncClient, release: str, probes: Probes, grader: Grader | None, on_answer: OnAnswer | None = None
) -> Verdicts:
    """Return a release's answers to all probes, with verdicts.

    Args:
        client: of a gateway that offers the release.
        release: its tag.
        probes: to ask, greedily.
        grader: judges the answers to probes with the judge `grader`. Without it they get no verdict.
        on_answer: called after each answer.

    Raises:
        TandemError: the gateway cannot be reached, or does not offer the release.
    """
    slots = asyncio.Semaphore(_NUM_IN_FLIGHT)

    async def ask(probe: Probe) -> Judged:
        async with slots:
            try:
                answer = await client.ask(
                    _messages(probe, probes.images), release=release, temperature=0.0, max_tokens=probe.max_tokens
                )
            except InvalidArgument as error:  # this probe is refused, others may not be
                judged = Judged(probe, "", "wrong", error.message)
            else:
                judged = await _judge(probe, answer.text, grader)
        if on_answer is not None:
            on_answer()
        return judged

    return Verdicts(await asyncio.gather(*map(ask, probes.probes)))


def compare(source: Verdicts, result: Verdicts) -> Difference:
    """Return the paired difference of two releases.

    Args:
        source: answers of the release that the other was made from, or of the stable one.
        result: answers of the other release to the same probes.
    """
    pairs = PairCounter()
    verdicts: dict[bytes, Verdict] = {one.probe.digest: one.verdict for one in result.judged}
    for one in source.judged:
        other = verdicts.get(one.probe.digest, "unjudged")
        pairs.add(one.probe.id, one.probe.slice_names, one.verdict, other)
    probing = pairs.probing()
    count = probing.counts[0]
    low, high = drop_interval(count.lost, count.gained, count.total)
    return Difference(count, probing.lost, low, high)


async def _judge(probe: Probe, answer: str, grader: Grader | None) -> Judged:
    if not isinstance(probe.judge, Graded):
        return Judged(probe, answer, "right" if probe.judge.is_right(answer) else "wrong")
    if grader is None:
        return Judged(probe, answer, "unjudged", "There is no grader.")
    try:
        return Judged(probe, answer, "right" if await grader.is_right(probe, answer) else "wrong")
    except FailedPrecondition as error:
        return Judged(probe, answer, "unjudged", error.message)


def _messages(probe: Probe, images: dict[bytes, bytes]) -> list[Message]:
    return [
        Message(message.role, tuple(part if isinstance(part, str) else Image(images[part]) for part in message.parts))
        for message in probe.messages
    ]
