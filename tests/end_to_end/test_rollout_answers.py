"""A release that answers worse leaves, on real processes.

50 streams of 20 tenants ask the demo's questions, whose right answers are known.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from demo.evaluate import MAX_TOKENS, Case, make_cases
from tandem.client import AsyncClient, Image, Rollouts, user
from tandem.commands.rollout import parse_steps
from tandem.v1 import rollout_pb2
from tests.end_to_end.rollout_world import PROMOTED, ROLLED_BACK, STREAMS, World

pytestmark = [pytest.mark.load, pytest.mark.timeout(900)]

SHIPPED = Path(__file__).parents[2] / "models"
WORSE, BETTER = "tandem-demo-v1.0.0", "tandem-demo-v1.1.0"
TENANTS = 20
RATED = 0.02  # share of the answers
NUM_CASES = 256
OPERATOR_KEY = "operator"
KEY = """[[tenants]]
name = "{name}"
key_sha256 = ["{digest}"]
role = "{role}"
"""


@dataclass
class Answers:
    """Answers that the streams got."""

    counts: Counter[tuple[str, bool]] = field(default_factory=Counter)  # (release, is right)
    rated: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def of(self, release: str) -> str:
        """Describe the answers of a release."""
        right, wrong = (self.counts[release, is_right] for is_right in (True, False))
        rated = self.rated[release, True] + self.rated[release, False]
        return f"{right + wrong} answers of {release}, {wrong} wrong, {rated} rated"


@pytest.mark.parametrize("by", ["probes", "ratings"])
@pytest.mark.parametrize(("stable", "canary", "end"), [(BETTER, WORSE, ROLLED_BACK), (WORSE, BETTER, PROMOTED)])
async def test_only_the_better_release_stays(
    by: str, stable: str, canary: str, end: "rollout_pb2.RolloutPhase.ValueType", tmp_path: Path
) -> None:
    guard = rollout_pb2.RolloutGuard(
        max_error_rate_increase=0.02,
        max_empty_rate_increase=0.02,
        max_first_token_ratio=1.5,
        max_inter_token_ratio=1.5,
        max_repetition_increase=0.02,
        max_wrong_script_increase=0.02,
        max_dislike_increase=0.05,
        max_quality_drop=0.02 if by == "probes" else None,
        overdue_s=30,  # two cores carry all processes
    )
    plan = rollout_pb2.RolloutPlan(canary=canary, steps=parse_steps("50:15s,100:5s"), guard=guard)
    with World(SHIPPED, stable) as world:
        address = world.gateway(flags=["--keys", str(write_keys(tmp_path / "keys.toml"))])
        async with streams(address, rated=RATED if by == "ratings" else 0.0) as answers:
            await asyncio.sleep(2)
            started = time.monotonic()
            rollout = await asyncio.to_thread(roll_out, address, plan)
            took_s = time.monotonic() - started
    print(
        f"\n{canary} over {stable}, {by}: {rollout_pb2.RolloutPhase.Name(rollout.phase)} after {took_s:.1f} s, "
        f"{rollout.probes.judged} probes, {rollout.probes.lost} lost, "
        f"{answers.of(canary)}, {answers.of(stable)}: {rollout.changes[-1].reason}"
    )
    assert rollout.phase == end, rollout.changes[-1].reason
    if end == ROLLED_BACK:
        assert ("quality" if by == "probes" else "feedback") in rollout.changes[-1].reason
        assert answers.counts[canary, False] < (1 if by == "probes" else 2000)  # half of the runs need under 1,000


def roll_out(address: str, plan: rollout_pb2.RolloutPlan) -> rollout_pb2.Rollout:
    """Return the rollout at its end."""
    with Rollouts(address, api_key=OPERATOR_KEY, timeout_s=60) as rollouts:
        rollouts.set(plan)
        while (rollout := rollouts.get()).phase not in (PROMOTED, ROLLED_BACK):
            time.sleep(0.1)
        return rollout


def write_keys(path: Path) -> Path:
    """Write the keys of an operator and all tenants."""
    names = {OPERATOR_KEY: "operator"} | {f"tenant-{number}": "client" for number in range(TENANTS)}
    entries = [
        KEY.format(name=name, digest=sha256(name.encode()).hexdigest(), role=role) for name, role in names.items()
    ]
    path.write_text("".join(entries))
    return path


@asynccontextmanager
async def streams(address: str, *, rated: float) -> AsyncIterator[Answers]:
    """Ask for the block, and rate some answers."""
    answers, ending = Answers(), asyncio.Event()
    cases = [case for case in make_cases(NUM_CASES, seed=1) if len(case.conversation.turns) == 1]
    async with asyncio.TaskGroup() as tasks:
        for number in range(STREAMS):
            tasks.create_task(_ask(address, number, cases, answers, ending, rated))
        try:
            yield answers
        finally:
            ending.set()


async def _ask(
    address: str, number: int, cases: list[Case], answers: Answers, ending: asyncio.Event, rated: float
) -> None:
    rng = random.Random(number)
    async with AsyncClient(address, api_key=f"tenant-{number % TENANTS}", timeout_s=60) as client:
        while not ending.is_set():
            case = rng.choice(cases)
            (turn,) = case.conversation.turns
            answer = await client.ask([user(Image(case.image), turn.question)], temperature=0.0, max_tokens=MAX_TOKENS)
            key = answer.release.language_tag, answer.text == turn.answer
            answers.counts[key] += 1
            if rng.random() < rated:
                answers.rated[key] += await client.rate(answer.request_id, 1 if key[1] else -1)
