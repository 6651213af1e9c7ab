"""Updates, scaling, drains and failures of pods under load."""

import time

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.conftest import GATEWAY, OVERLAYS, Table
from tests.k8s.load import Load
from tests.k8s.objects import render

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

SERVICES = ("vision", "language", "gateway")
EVERYTHING = (*SERVICES, "redis")


async def test_a_cluster_answers_after_apply(cluster: Cluster, table: Table) -> None:
    started_s = time.monotonic()
    cluster.apply(render(OVERLAYS / "stable"))
    await cluster.wait_until(lambda: all(map(cluster.pods_of, EVERYTHING)), 5)
    await cluster.wait_rolled_out(*EVERYTHING)
    ready_s = time.monotonic() - started_s
    with Load(GATEWAY, streams=1) as load:
        answered_s = time.monotonic() - started_s
    table.add("the first answers", load, f"ready after {ready_s:.1f} s, answer after {answered_s:.1f} s")
    assert load.summary is not None
    assert load.summary.failed == {}


@pytest.mark.parametrize("service", SERVICES)
async def test_a_rolling_update_fails_no_request(cluster: Cluster, table: Table, service: str) -> None:
    with Load(GATEWAY) as load:
        cluster.restart(service)
        seconds = await cluster.wait_rolled_out(service)
    table.add(f"rolling update of {service}", load, f"{seconds:.1f} s")
    assert load.summary is not None
    assert load.summary.failed == {}
