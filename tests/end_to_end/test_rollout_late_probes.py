"""Probes that follow in the steps decide, on real processes.

50 streams ask the demo's questions, and a share of the requests of both releases is mirrored.
"""

import asyncio
import time
from pathlib import Path

import pytest

from tandem.commands.rollout import parse_steps
from tandem.v1 import rollout_pb2
from tests.end_to_end.rollout_world import PROMOTED, ROLLED_BACK, World
from tests.end_to_end.test_rollout_answers import BETTER, SHIPPED, WORSE, roll_out, streams, write_keys

pytestmark = [pytest.mark.load, pytest.mark.timeout(900)]

ENDS = {
    ROLLED_BACK: (rollout_pb2.ROLLOUT_EVENT_STARTED, rollout_pb2.ROLLOUT_EVENT_ROLLED_BACK),
    PROMOTED: (rollout_pb2.ROLLOUT_EVENT_STARTED, rollout_pb2.ROLLOUT_EVENT_PROMOTED),
}


@pytest.mark.parametrize(("stable", "canary", "end"), [(BETTER, WORSE, ROLLED_BACK), (WORSE, BETTER, PROMOTED)])
async def test_a_rollout_need_not_wait_for_all_probes(
    stable: str, canary: str, end: "rollout_pb2.RolloutPhase.ValueType", tmp_path: Path
) -> None:
    guard = rollout_pb2.RolloutGuard(
        max_error_rate_increase=0.02,
        max_constraint_increase=0.02,
        max_quality_drop=0.02,
        probes_before_traffic=10,
        overdue_s=30,  # two cores carry all processes
    )
    plan = rollout_pb2.RolloutPlan(
        canary=canary,
        steps=parse_steps("10:5s,50:5s,100:5s"),
        guard=guard,
        shadow_percent=10,
        shadow_canary_percent=10,
    )
    with World(SHIPPED, stable) as world:
        address = world.gateway(flags=["--keys", str(write_keys(tmp_path / "keys.toml"))])
        async with streams(address, rated=0.0) as answers:
            await asyncio.sleep(2)
            started = time.monotonic()
            rollout = await asyncio.to_thread(roll_out, address, plan)
            took_s = time.monotonic() - started
    before, last = (next(one for one in rollout.changes if one.event == event) for event in ENDS[end])
    print(
        f"\n{canary} over {stable}, 10 probes before traffic: {rollout_pb2.RolloutPhase.Name(rollout.phase)} after "
        f"{took_s:.1f} s, {last.at_s - before.at_s:.1f} s of them with traffic, {rollout.probes.judged} probes, "
        f"{rollout.probes.lost} lost, {answers.of(canary)}, {answers.of(stable)}: {last.reason}"
    )
    assert rollout.phase == end, last.reason
    assert before.reason.endswith(" more follow in the steps.")
    assert rollout.probes.judged > 10
    if end == ROLLED_BACK:
        assert "quality" in last.reason
