"""The images together answer questions, drain and die alone."""

import base64
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import tandem
from tandem.errors import TandemError
from tests.images.containers import RELEASE, Container

pytestmark = [pytest.mark.images, pytest.mark.timeout(300)]

IMAGE = Path(__file__).parents[2] / "demo" / "images" / "bag-and-bottle.png"
ADDRESS = "127.0.0.1:50050"
DOOR = "http://127.0.0.1:8080"
KILLED = 137  # by the kernel. Nobody else sends SIGKILL here, and podman does not always see the reason
# Port of the health checks, name to ask for, and memory limit as in k8s/overlays/minimal.
SERVICES = {
    "vision": (50061, "tandem.v1.VisionService", "640m"),
    "language": (50062, "tandem.v1.LanguageService", "768m"),
    "gateway": (50060, "tandem.v1.Gateway/stable", "512m"),
}
STAGES = ("--vision", "127.0.0.1:50051", "--language", "127.0.0.1:50052")
LISTEN = {"vision": "127.0.0.1:50051", "language": "127.0.0.1:50052", "gateway": ADDRESS}


def container(service: str) -> Container:
    port, _name, memory = SERVICES[service]
    flags = {"gateway": STAGES, "language": ("--kv-cache-bytes", str(128 * 2**20))}.get(service, ())
    listen = ("--listen", LISTEN[service], "--probe-listen", f"127.0.0.1:{port}")
    return Container(service, *listen, *flags, network="host", memory=memory)


@pytest.fixture(scope="module")
def together() -> Iterator[dict[str, Container]]:
    """Yield the running containers."""
    with ExitStack() as stack:
        running = {service: stack.enter_context(container(service)) for service in SERVICES}
        door = Container("http", "--listen", "127.0.0.1:8080", "--gateway", ADDRESS, network="host", memory="256m")
        running["http"] = stack.enter_context(door)
        for one in running.values():
            one.wait_until_ready()
        yield running


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def ask(address: str = ADDRESS) -> str:
    with tandem.Client(address, timeout_s=30) as client:
        answer = client.ask("Is the bag made of leather?", images=[IMAGE], max_tokens=8)
    assert str(answer.release) == RELEASE
    return answer.text


def upload(address: str, num_bytes: int) -> None:
    """Upload different files of 4 MiB."""
    with tandem.Client(address, timeout_s=30) as client:
        for _ in range(num_bytes // 2**22):
            client.put_image(os.urandom(2**22))


@pytest.mark.parametrize("service", SERVICES)
def test_the_probe_says_that_the_container_serves(service: str, together: dict[str, Container]) -> None:
    port, name, _memory = SERVICES[service]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for one in ("", name):
            end_s = time.monotonic() + 20  # the gateway's name serves once it has seen both stages
            request = health_pb2.HealthCheckRequest(service=one)
            while stub.Check(request, timeout=10).status != health_pb2.HealthCheckResponse.SERVING:
                assert time.monotonic() < end_s, one
                time.sleep(0.5)


def test_a_question_goes_through_all_three(together: dict[str, Container]) -> None:
    assert ask()


def test_a_question_over_http_goes_through_all_four(together: dict[str, Container]) -> None:
    content = [{"type": "image_url", "image_url": {"url": data_url(IMAGE)}}, {"type": "text", "text": "Is it red?"}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{DOOR}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(f"{DOOR}/readyz", timeout=10) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(request, timeout=30) as answer:
        found = json.load(answer)
    assert found["choices"][0]["message"]["content"]
    assert found["tandem"]["release"] == RELEASE
    with urllib.request.urlopen(f"{DOOR}/", timeout=10) as answer:
        assert b"<html" in answer.read()


def test_a_gateway_finishes_its_answer_after_sigterm(together: dict[str, Container]) -> None:
    with ThreadPoolExecutor(1) as pool, tandem.Client(ADDRESS) as client:
        stream = iter(client.generate("Tell me more.", images=[IMAGE], max_tokens=400, ignore_eos=True))
        next(stream)
        stopping = pool.submit(together["gateway"].stop, 60)
        rest = list(stream)
        assert stopping.result() == 0
    assert rest
    together["gateway"].start()
    together["gateway"].wait_until_ready()
    assert ask()


def test_a_gateway_at_its_memory_limit_dies_alone(together: dict[str, Container]) -> None:
    """Uploads fill an image store beyond the limit."""
    flags = (*STAGES, "--listen", "127.0.0.1:50059", "--image-store-bytes", str(4 * 2**30))
    with Container("gateway", *flags, network="host", memory="200m", name="small") as small:
        small.wait_until_ready()
        with pytest.raises(TandemError):
            upload("127.0.0.1:50059", num_bytes=800 * 2**20)
        assert small.wait_for_end() == KILLED, small.log()
        assert ask()


@pytest.mark.parametrize("service", ["vision", "language"])
def test_a_stage_at_its_memory_limit_dies_alone(service: str, together: dict[str, Container]) -> None:
    """The libraries alone need more than this limit."""
    with Container(service, "--listen", "127.0.0.1:50058", network="host", memory="80m", name="small") as small:
        answers = [ask()]
        assert small.wait_for_end() == KILLED, small.log()
        assert all([*answers, ask()])
    assert all(one.state()["Running"] for one in together.values())
