"""Network policies admit the listed traffic and no other."""

import asyncio

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.conftest import NAMESPACE, needs_containers
from tests.k8s.objects import Object, Pod

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]

CLIENT_LABEL = {"tandem.dev/client": "true"}
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"


def sleeping_pod(name: str, namespace: str, labels: dict[str, str]) -> Object:
    container = {
        "name": "main",
        "image": "tandem-gateway:0.1.0",
        "command": ["python", "-c", "import time; time.sleep(600)"],
    }
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }


async def reaches(cluster: Cluster, source: Pod, host: str, port: int) -> bool:
    """Return whether a pod can open a connection."""
    try:
        await cluster.exec(source, "python", "-c", CONNECT, host, str(port))
    except RuntimeError as error:
        if "TimeoutError" not in str(error):
            raise
        return False
    return True


@needs_containers
async def test_only_listed_traffic_passes(stable: Cluster) -> None:
    stable.apply(
        [
            {"kind": "Namespace", "metadata": {"name": "other"}},
            {"kind": "Namespace", "metadata": {"name": "monitoring"}},
            sleeping_pod("stranger", "other", {}),
            sleeping_pod("client", "other", CLIENT_LABEL),
            sleeping_pod("prometheus", "monitoring", {}),
            sleeping_pod("neighbour", NAMESPACE, {}),
        ]
    )
    names = ("stranger", "client", "prometheus", "neighbour")
    await stable.wait_until(lambda: {pod.name for pod in stable.pods if pod.serves}.issuperset(names), 60)
    by_name = {pod.name: pod for pod in stable.pods}
    stranger, client, prometheus, neighbour = (by_name[name] for name in names)
    (gateway,) = stable.pods_of("gateway")
    (http,) = stable.pods_of("http")
    (vision,) = stable.pods_of("vision")
    (redis,) = stable.pods_of("redis")

    allowed = [
        (client, gateway.ip, 50050),
        (client, "gateway.tandem.svc.cluster.local", 50050),
        (prometheus, gateway.ip, 9090),
        (prometheus, vision.ip, 9090),
        (client, "http.tandem.svc.cluster.local", 8080),
        (http, "gateway", 50050),
        (prometheus, http.ip, 9090),
        (gateway, "vision", 50051),
        (gateway, "language", 50052),
        (gateway, "redis", 6379),
    ]
    denied = [
        (stranger, gateway.ip, 50050),
        (stranger, http.ip, 8080),
        (neighbour, http.ip, 8080),
        (http, vision.ip, 50051),
        (http, stranger.ip, 50050),
        (client, gateway.ip, 9090),
        (client, gateway.ip, 50060),
        (client, vision.ip, 50051),
        (client, redis.ip, 6379),
        (neighbour, gateway.ip, 50050),
        (neighbour, vision.ip, 50051),
        (prometheus, gateway.ip, 50050),
        (vision, redis.ip, 6379),
        (vision, gateway.ip, 50050),
        (gateway, stranger.ip, 50050),
    ]
    # Together, since each denied one waits for its timeout.
    connections = [*allowed, *denied]
    reached = await asyncio.gather(*(reaches(stable, *one) for one in connections))
    passed = [one for one, passes in zip(connections, reached, strict=True) if passes]
    assert passed == allowed, [(pod.name, host, port) for pod, host, port in passed]
    print(f"\n{len(allowed)} allowed connections pass, {len(denied)} others are dropped")
