"""The first test of the cluster: it starts from nothing."""

import time

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.conftest import EVERYTHING, OVERLAYS, Table, under_load
from tests.k8s.objects import render

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]


async def test_a_cluster_answers_after_apply(cluster: Cluster, table: Table) -> None:
    assert not cluster.pods
    started_s = time.monotonic()
    cluster.apply(render(OVERLAYS / "stable"))
    await cluster.wait_rolled_out(*EVERYTHING)
    ready_s = time.monotonic() - started_s
    with under_load(streams=1) as load:
        answered_s = time.monotonic() - started_s
    table.add("start from nothing", load, f"ready after {ready_s:.1f} s, first answer after {answered_s:.1f} s")
    assert load.summary.failed == {}
