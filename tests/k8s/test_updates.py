"""Updates, scaling, drains and failures of pods under load."""

import asyncio
import copy
import signal
import time

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.conftest import EVERYTHING, STAGES_AND_GATEWAY, Table, under_load
from tests.k8s.objects import Object, Pod

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize(
    "service", ["gateway", *(pytest.param(one, marks=pytest.mark.slow) for one in ("vision", "language"))]
)
async def test_a_rolling_update_fails_no_request(stable: Cluster, table: Table, service: str) -> None:
    with under_load() as load:
        stable.restart(service)
        seconds = await stable.wait_rolled_out(service)
    table.add(f"rolling update of {service}", load, f"{seconds:.1f} s")
    assert load.summary.failed == {}


@pytest.mark.slow
async def test_streams_end_within_the_grace_of_a_replaced_gateway(stable: Cluster, table: Table) -> None:
    old = set(stable.pods_of("gateway"))
    with under_load(max_tokens=400) as load:
        stable.restart("gateway")
        seconds = await stable.wait_rolled_out("gateway")
    table.add("gateway replaced while answers of 400 tokens run", load, f"{seconds:.1f} s")
    assert load.summary.failed == {}
    assert not any("Killed" in event for pod in old for event in pod.events)


@pytest.mark.slow
async def test_scaling_a_stage_fails_no_request(stable: Cluster, table: Table) -> None:
    with under_load() as load:
        stable.scale("vision", 3)
        up_s = await stable.wait_rolled_out("vision")
        stable.scale("vision", 1)
        down_s = await stable.wait_rolled_out("vision")
    table.add("vision scaled 1 -> 3 -> 1", load, f"{up_s:.1f} s up, {down_s:.1f} s down")
    assert load.summary.failed == {}


@pytest.mark.slow
async def test_a_drained_node_fails_no_request(stable: Cluster, table: Table) -> None:
    for service in STAGES_AND_GATEWAY:
        stable.scale(service, 2)
    await stable.wait_rolled_out(*EVERYTHING)
    node = stable.pods_of("redis")[0].node
    started_s = time.monotonic()
    with under_load() as load:
        await stable.drain(node)
        await stable.wait_rolled_out(*EVERYTHING)
    table.add("a node drained", load, f"{time.monotonic() - started_s:.1f} s")
    stable.uncordon(node)
    assert load.summary.failed == {}
    assert {pod.node for pod in stable.pods} != {node}


@pytest.mark.parametrize(
    "fault", ["a release that is not in the store", pytest.param("too little memory", marks=pytest.mark.slow)]
)
async def test_a_pod_that_never_becomes_ready_harms_nobody(stable: Cluster, table: Table, fault: str) -> None:
    """The update stops, and the pod says why it ends."""
    good = copy.deepcopy(stable.store.get("Deployment", "language"))
    bad = copy.deepcopy(good)
    if fault == "too little memory":
        bad["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "100Mi"
    else:
        set_variable(bad, "TANDEM_LANGUAGE_TAGS", "absent-v1.0.0")
    serving = [pod for pod in stable.pods_of("language") if pod.serves]
    with under_load() as load:
        stable.apply([bad])
        await stable.wait_until(lambda: bool(failing_pods(stable)), 120, "fail to start")
        (failing,) = failing_pods(stable)
        assert all(pod.serves for pod in serving)
        stable.apply([good])
        seconds = await stable.wait_rolled_out("language")
    table.add(f"{fault}: never ready, then undone", load, f"{seconds:.1f} s to undo")
    assert load.summary.failed == {}
    assert set(stable.pods_of("language")) == set(serving)
    if fault == "too little memory":
        assert "Exited: code 137" in failing.events
    else:
        assert "absent-v1.0.0" in failing.termination_message


@pytest.mark.slow
async def test_a_hung_pod_is_restarted_by_its_liveness_probe(stable: Cluster, table: Table) -> None:
    """Requests in the hung process may fail, later ones not."""
    stable.scale("vision", 2)
    await stable.wait_rolled_out("vision")
    hung = stable.pods_of("vision")[0]
    with under_load() as load:
        await stable.signal(hung, signal.SIGSTOP)
        await stable.wait_until(lambda: hung.restarts == 1 and hung.serves, 180, "restart the hung pod")
    table.add("one of two vision pods hangs, until it is restarted", load, " | ".join(hung.events[-4:]))
    with under_load() as load:
        pass
    assert load.summary.failed == {}


@pytest.mark.slow
async def test_requests_succeed_without_redis(stable: Cluster, table: Table) -> None:
    with under_load() as load:
        stable.scale("redis", 0)
        await stable.wait_rolled_out("redis")
        await asyncio.sleep(10)
        stable.scale("redis", 1)
        await stable.wait_rolled_out("redis")
    table.add("Redis gone for 10 s", load)
    assert load.summary.failed == {}


def set_variable(deployment: Object, name: str, value: str) -> None:
    """Set a variable of the Deployment's only container."""
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    (variable,) = [one for one in variables if one["name"] == name]
    variable.pop("valueFrom", None)
    variable["value"] = value


def failing_pods(cluster: Cluster) -> list[Pod]:
    return [pod for pod in cluster.pods_of("language") if pod.restarts]
