"""Pods as processes, for machines without containers."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.conftest import OVERLAYS
from tests.k8s.objects import ObjectStore, render
from tests.k8s.processes import Processes

RUN = Path(__file__).parent / "run"


def test_without_containers_ci_fails() -> None:
    done = subprocess.run(
        [RUN], env={**os.environ, "CI": "true", "TANDEM_CONTAINERS": "no"}, capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "The tests of the manifests need containers: TANDEM_CONTAINERS=no.\n"


@pytest.mark.k8s
@pytest.mark.slow
async def test_a_deployment_runs_and_is_updated_as_processes(tmp_path: Path) -> None:
    """With the probes, volumes and settings of its manifest."""
    store = ObjectStore()
    cluster = Cluster(store, Processes(tmp_path, store), None)
    cluster.apply([one for one in render(OVERLAYS / "stable") if one["kind"] == "ConfigMap"])
    cluster.apply([one for one in render(OVERLAYS / "stable") if one["metadata"]["name"] == "vision"])
    controllers = asyncio.create_task(cluster.run())
    try:
        await cluster.wait_rolled_out("vision", within_s=90)
        (old,) = cluster.pods_of("vision")
        cluster.restart("vision")
        await cluster.wait_rolled_out("vision", within_s=90)
        (new,) = cluster.pods_of("vision")
        assert new.ip != old.ip
        assert (old.events[-1], old.restarts, new.restarts) == ("Exited: code 0", 0, 0)
    finally:
        controllers.cancel()
        await asyncio.gather(controllers, return_exceptions=True)
        await cluster.stop()
