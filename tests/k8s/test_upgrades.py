"""A canary is promoted or rolled back under load."""

import asyncio
import copy
import time
from collections.abc import Mapping
from types import MappingProxyType

import pytest

from tandem.client import Rollouts
from tandem.v1 import rollout_pb2
from tests.end_to_end.rollout_world import PROMOTED, ROLLED_BACK, RUNNING, brief, plan
from tests.k8s.cluster import Cluster
from tests.k8s.conftest import API_KEY, GATEWAY, OVERLAYS, STAGES_AND_GATEWAY, Table, under_load
from tests.k8s.objects import Pod, render
from tests.k8s.test_updates import set_variable

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]

CANARY = "tandem-demo-v1.0.0"
CANARY_PODS = ("vision-canary", "language-canary")


@pytest.mark.slow
async def test_a_bad_canary_is_rolled_back_and_the_stable_pods_stay(stable: Cluster, table: Table) -> None:
    """A canary with little processor time has late first tokens."""
    objects = render(OVERLAYS / "canary")
    language = next(one for one in objects if one["metadata"]["name"] == "language-canary")
    language["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "100m"
    before = stable_pods(stable)
    stable.apply(objects)
    await stable.wait_rolled_out(*CANARY_PODS)
    with under_load() as load:
        rollout, seconds = await follow((50, 100))
    table.add("a bad canary, rolled back by itself", load, f"{seconds:.1f} s, {rollout.changes[-1].reason}")
    assert rollout.phase == ROLLED_BACK, brief(rollout)
    assert load.summary.failed == {}
    assert stable_pods(stable) == before
    await remove_canary(stable)


async def test_a_canary_with_all_traffic_is_rolled_back_by_one_command(stable: Cluster, table: Table) -> None:
    before = stable_pods(stable)
    with under_load() as load:
        brought_s, rollout, seconds = await bring(stable, last_step_s=600)
        assert rollout.phase == RUNNING, brief(rollout)
        await asyncio.sleep(3)
        await asyncio.to_thread(roll_back)
        await remove_canary(stable)
    steps = f"pods ready after {brought_s:.1f} s, 100 % {seconds:.1f} s later"
    table.add("a canary to 100 %, rolled back, removed", load, steps)
    assert load.summary.failed == {}
    assert stable_pods(stable) == before


@pytest.mark.slow
async def test_a_canary_becomes_stable(stable: Cluster, table: Table) -> None:
    """The whole sequence, from bringing the pods to removal."""
    before = stable_pods(stable)
    with under_load() as load:
        brought_s, rollout, seconds = await bring(stable)
        assert rollout.phase == PROMOTED, brief(rollout)
        assert stable_pods(stable) == before
        # The Deployments now get the new release. The old pods leave when the new ones are ready.
        for name, variable in (
            ("vision", "TANDEM_VISION_TAGS"),
            ("language", "TANDEM_LANGUAGE_TAGS"),
            ("gateway", "TANDEM_GATEWAY_RELEASE"),
        ):
            promoted = copy.deepcopy(stable.store.get("Deployment", name))
            set_variable(promoted, variable, CANARY)
            stable.apply([promoted])
        await stable.wait_rolled_out(*STAGES_AND_GATEWAY)
        await remove_canary(stable)
    steps = f"pods ready after {brought_s:.1f} s, 100 % {seconds:.1f} s later"
    table.add("a canary to 100 %, then stable, then removed", load, steps)
    assert load.summary.failed == {}


async def bring(cluster: Cluster, last_step_s: float = 0) -> tuple[float, rollout_pb2.Rollout, float]:
    """Bring the canary's pods and move all traffic to it.

    Returns the seconds until its pods were ready, the rollout, and its seconds.
    """
    cluster.apply(render(OVERLAYS / "canary"))
    brought_s = await cluster.wait_rolled_out(*CANARY_PODS)
    # Other work on this machine must not roll back an equal canary. The bad one is 30 times slower than stable.
    wide = {"max_first_token_ratio": 20.0, "max_inter_token_ratio": 20.0}
    return brought_s, *await follow((5, 25, 50, 100), shadow_percent=10, last_step_s=last_step_s, guard=wide)


def roll_back() -> None:
    with Rollouts(GATEWAY, api_key=API_KEY, allow_plaintext=True) as rollouts:
        assert rollouts.roll_back().phase == ROLLED_BACK


async def remove_canary(cluster: Cluster) -> None:
    for name in CANARY_PODS:
        cluster.delete("Deployment", name)
    await cluster.wait_until(lambda: not any(map(cluster.pods_of, CANARY_PODS)), 60)


def stable_pods(cluster: Cluster) -> dict[Pod, int]:
    """Return the stable pods with their restarts."""
    return {pod: pod.restarts for name in STAGES_AND_GATEWAY for pod in cluster.pods_of(name)}


async def follow(
    weights: tuple[float, ...],
    *,
    shadow_percent: float = 0,
    last_step_s: float = 0,
    guard: Mapping[str, float] = MappingProxyType({}),
) -> tuple[rollout_pb2.Rollout, float]:
    """Run a rollout to its end or its last step.

    Returns it with its seconds.
    """
    steps = plan(CANARY, weights)
    steps.shadow_percent = shadow_percent
    steps.steps[-1].seconds = last_step_s
    for name, value in guard.items():
        setattr(steps.guard, name, value)
    started_s = time.monotonic()
    with Rollouts(GATEWAY, api_key=API_KEY, allow_plaintext=True) as rollouts:
        rollout = await asyncio.to_thread(rollouts.set, steps)
        while rollout.phase not in (PROMOTED, ROLLED_BACK) and not (last_step_s and rollout.weight_percent == 100):
            assert time.monotonic() - started_s < 240, brief(rollout)
            await asyncio.sleep(0.5)
            rollout = await asyncio.to_thread(rollouts.get)
    return rollout, time.monotonic() - started_s
