"""Envoy, with the file of the documentation, keeps clients from each other.

`tests/hostile/envoy/run` brings it.
"""

import os
import socket
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
import yaml

from chassis.errors import NotFound
from chassis.server import Server
from chassis.settings import ServiceSettings
from tandem.v1 import gateway_pb2, gateway_pb2_grpc
from tests.gateway.scripted import error_of, eventually
from tests.hostile.http2_client import SilentReader

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(180)]

CONFIG = Path(__file__).parents[3] / "docs" / "envoy.yaml"
COUNT = "/tandem.v1.Gateway/CountTokens"
OK, REFUSED = (str(code.value[0]) for code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED))
HOSTILE = "127.0.0.2"
NUM_CALLS = 20  # that an address may make, in place of those in the file
READY_S = 60


class Gateway(gateway_pb2_grpc.GatewayServicer):
    """Answers without models."""

    async def CountTokens(self, request: Any, context: Any) -> gateway_pb2.CountTokensResponse:  # noqa: N802
        return gateway_pb2.CountTokensResponse(prompt_tokens=7)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[gateway_pb2.GatewayGenerateResponse]:  # noqa: N802
        if request.routing_key == "unknown":
            raise NotFound("There is none.", reason="IMAGE_NOT_FOUND")
        for number in range(300):
            yield gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text=str(number)))


@dataclass
class Envoy:
    """A running Envoy."""

    port: int
    authority: trustme.CA

    def channel(self) -> grpc.aio.Channel:
        with self.authority.cert_pem.tempfile() as path:
            credentials = grpc.ssl_channel_credentials(Path(path).read_bytes())
        return grpc.aio.secure_channel(f"localhost:{self.port}", credentials)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(ServiceSettings(max_connections=8))
    gateway_pb2_grpc.add_GatewayServicer_to_server(Gateway(), server.grpc)  # type: ignore[abstract]
    await server.start()
    yield server
    await server.stop(0)


@pytest.fixture
def envoy(server: Server, tmp_path: Path) -> Iterator[Envoy]:
    """Yield Envoy with this test's addresses and certificate."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    running = Envoy(free_port(), authority)
    text = CONFIG.read_text().replace("/etc/envoy", str(tmp_path))
    config = yaml.safe_load(text)
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "0.0.0.0", "port_value": running.port}
    connection_manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (bucket,) = connection_manager["http_filters"][0]["typed_config"]["descriptors"]
    bucket["token_bucket"] = {"max_tokens": NUM_CALLS, "tokens_per_fill": 1, "fill_interval": "600s"}
    (endpoint,) = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    endpoint["endpoint"]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": server.port}
    (tmp_path / "envoy.yaml").write_text(yaml.safe_dump(config))
    program = Path(os.environ["TANDEM_ENVOY"]) / "envoy" / "_bin" / "envoy"
    flags = ("--config-path", str(tmp_path / "envoy.yaml"), "--concurrency", "1", "--disable-hot-restart")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([str(program), *flags], stderr=log, stdout=log)
    try:
        ends_s = time.monotonic() + READY_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", running.port)).close()
                break
            except ConnectionRefusedError:
                is_starting = process.poll() is None and time.monotonic() < ends_s
                assert is_starting, (tmp_path / "log").read_text()
                time.sleep(0.1)
        yield running
    finally:
        process.kill()
        process.wait()


async def count(stub: Any) -> int:
    response = await stub.CountTokens(gateway_pb2.CountTokensRequest(), timeout=60)
    return int(response.prompt_tokens)


async def test_calls_streams_and_typed_errors_pass(envoy: Envoy) -> None:
    async with envoy.channel() as channel:
        stub: Any = gateway_pb2_grpc.GatewayStub(channel)
        assert await count(stub) == 7
        assert len([one async for one in stub.Generate(gateway_pb2.GatewayGenerateRequest())]) == 300
        error = await error_of(read_all(stub.Generate(gateway_pb2.GatewayGenerateRequest(routing_key="unknown"))))
        assert error.reason == "IMAGE_NOT_FOUND"


async def test_one_address_has_a_cap_on_its_calls_and_others_are_answered(envoy: Envoy) -> None:
    tls = ssl.create_default_context()
    tls.set_alpn_protocols(["h2"])
    envoy.authority.configure_trust(tls)
    async with SilentReader(envoy.port, window=65_535, source=HOSTILE, tls=tls) as hostile:
        for _ in range(3 * NUM_CALLS):
            await hostile.call(COUNT, gateway_pb2.CountTokensRequest())
        await eventually(lambda: len(hostile.statuses) == 3 * NUM_CALLS)
    statuses = Counter(hostile.statuses.values())
    assert statuses[OK] <= NUM_CALLS + 1
    assert statuses[OK] + statuses[REFUSED] == 3 * NUM_CALLS
    async with envoy.channel() as channel:
        for _ in range(NUM_CALLS):
            assert await count(gateway_pb2_grpc.GatewayStub(channel)) == 7


async def test_idle_connections_of_one_address_keep_nobody_out(envoy: Envoy) -> None:
    """The gateway of this test takes eight connections."""
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", envoy.port), source_address=(HOSTILE, 0)))
        async with envoy.channel() as channel:
            assert await count(gateway_pb2_grpc.GatewayStub(channel)) == 7


async def read_all(call: Any) -> None:
    [_ async for _ in call]
