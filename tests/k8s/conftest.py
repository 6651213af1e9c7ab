"""A cluster of containers or processes for the rendered manifests."""

import os
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import pytest_asyncio

from chassis.api_keys import key_sha256, new_key
from tests.k8s.cluster import Cluster, running
from tests.k8s.load import HEADER, Load
from tests.k8s.objects import ObjectStore, render
from tests.k8s.podman import Podman
from tests.k8s.processes import Processes
from tests.k8s.services import NameServer

OVERLAYS = Path(__file__).parent / "overlays"
NAMESPACE = "tandem"
PODS, SERVICES, DNS = "198.18.0.0/16", IPv4Network("198.19.1.0/24"), "198.19.0.10"  # kept for tests by RFC 2544
STAGES_AND_GATEWAY = ("vision", "language", "gateway")
EVERYTHING = (*STAGES_AND_GATEWAY, "http", "redis")
GATEWAY = f"dns:///gateway.{NAMESPACE}.svc.cluster.local:50050"


API_KEY = new_key()


needs_containers = pytest.mark.skipif(os.environ.get("TANDEM_K8S") == "processes", reason="needs containers")


class Table:
    """The outcomes of the loads, printed row by row."""

    def __init__(self) -> None:
        print(f"\n{HEADER}", flush=True)

    def add(self, name: str, load: Load, remark: str = "") -> None:
        print(load.summary.row(name), remark, flush=True)


@pytest.fixture(scope="session")
def table() -> Table:
    return Table()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Return a cluster with namespace and Secret.

    `tests/k8s/run` has made the network for it.
    """
    mode = os.environ.get("TANDEM_K8S")
    assert mode, "start these tests with `make test-k8s`"
    folder = tmp_path_factory.mktemp("cluster")
    store = ObjectStore()
    if mode == "containers":
        podman = Podman(folder, store, subnet=PODS, dns=DNS, namespace=NAMESPACE)
        await podman.remove_leftovers()
        made = Cluster(store, podman, NameServer(folder, DNS), service_network=SERVICES)
    else:
        made = Cluster(store, Processes(folder, store), NameServer(folder, "127.0.0.1"))
    async with running(made) as cluster:
        tenant = f'[[tenants]]\nname = "test"\nrole = "operator"\nkey_sha256 = ["{key_sha256(API_KEY)}"]\n'
        for name, files in (("gateway-keys", {"keys.toml": tenant}), ("shared-cache", {"secret": 64 * "a"})):
            metadata = {"name": name, "namespace": NAMESPACE}
            cluster.apply([{"kind": "Secret", "metadata": metadata, "stringData": files}])
        yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def stable(cluster: Cluster) -> Cluster:
    """Return the cluster with the pods of `stable` alone.

    Undoes what the test before has left.
    """
    wanted = render(OVERLAYS / "stable")
    kept = {(one["kind"], one["metadata"]["name"]) for one in wanted}
    for kind in ("Deployment", "Pod"):
        for one in cluster.store.of(kind):
            if (kind, one["metadata"]["name"]) not in kept:
                cluster.delete(kind, one["metadata"]["name"])
    for node in cluster.nodes:
        cluster.uncordon(node)
    cluster.apply(wanted)
    await cluster.wait_rolled_out(*EVERYTHING)
    await cluster.wait_until(lambda: all(pod.owner in EVERYTHING for pod in cluster.pods), 60, "remove other pods")
    return cluster


def under_load(*, streams: int = 30, max_tokens: int = 12) -> Load:
    """Ask questions for a block."""
    return Load(GATEWAY, API_KEY, streams=streams, max_tokens=max_tokens)
