"""Fixtures: a cluster that runs the rendered manifests in containers, or as processes."""

import os
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import pytest_asyncio

from tests.k8s.cluster import Cluster, running
from tests.k8s.kubelet import Runtime
from tests.k8s.load import HEADER, Load
from tests.k8s.objects import ObjectStore
from tests.k8s.podman import Podman
from tests.k8s.services import NameServer

OVERLAYS = Path(__file__).parent / "overlays"
NAMESPACE = "tandem"
PODS, SERVICES, DNS = "198.18.0.0/16", IPv4Network("198.19.1.0/24"), "198.19.0.10"  # kept for tests by RFC 2544
GATEWAY = f"dns:///gateway.{NAMESPACE}.svc.cluster.local:50050"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Return an empty cluster. `tests/k8s/run` has made the network for it."""
    assert os.environ.get("TANDEM_K8S"), "start these tests with `make test-k8s`"
    folder = tmp_path_factory.mktemp("cluster")
    store = ObjectStore()
    podman = Podman(folder, store, subnet=PODS, dns=DNS, namespace=NAMESPACE)
    await podman.remove_leftovers()
    runtime: Runtime = podman
    names = NameServer(folder, DNS)
    async with running(Cluster(store, runtime, names, service_network=SERVICES)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def table() -> "Table":
    return Table()


class Table:
    """The outcomes of the loads, printed row by row."""

    def __init__(self) -> None:
        print(f"\n{HEADER}", flush=True)

    def add(self, name: str, load: Load, remark: str = "") -> None:
        assert load.summary is not None
        print(load.summary.row(name), remark, flush=True)
