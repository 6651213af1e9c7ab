"""The proxy of the environment, with a real one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from chassis.channels import environment_proxy, open_channel
from tandem import AsyncClient, Client
from tandem.errors import Unavailable
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

COUNT = gateway_pb2.CountTokensRequest()
VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")


@dataclass
class Proxy:
    """An HTTP proxy that connects every caller, or refuses."""

    port: int = 0
    relay_to: int | None = None  # a port of this machine
    targets: list[str] = field(default_factory=list)  # as callers named them

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.targets.append(head.split()[1].decode())
        if self.relay_to is None:
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            writer.close()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.relay_to)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def running_proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """Start a proxy that the environment names."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    async with running_proxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{proxy.port}")
        yield proxy


async def count(_servicer: Any, request: Any, context: Any) -> Any:
    return gateway_pb2.CountTokensResponse(prompt_tokens=5)


async def test_stages_are_called_without_the_proxy(serve: Any, proxy: Proxy) -> None:
    run = await serve(gateway={"CountTokens": count})
    assert (await run.gateway.CountTokens(COUNT)).prompt_tokens == 5
    async with open_channel("stage.invalid:50051") as channel:  # an address that is not of this machine
        with pytest.raises(grpc.aio.AioRpcError):
            await gateway_pb2_grpc.GatewayStub(channel).CountTokens(COUNT)
    assert proxy.targets == []


async def test_a_gateway_on_this_machine_is_asked_without_the_proxy(serve: Any, proxy: Proxy) -> None:
    run = await serve(gateway={"CountTokens": count})
    for host in ("localhost", "127.0.0.1"):
        address = f"{host}:{run.server.port}"
        async with AsyncClient(address) as client:
            assert (await client.count_tokens("?")).prompt_tokens == 5
        with Client(address) as blocking:
            assert (await asyncio.to_thread(blocking.count_tokens, "?")).prompt_tokens == 5
    assert proxy.targets == []


async def test_another_gateway_is_asked_through_the_proxy(serve: Any, proxy: Proxy) -> None:
    run = await serve(gateway={"CountTokens": count})
    proxy.relay_to = run.server.port
    async with AsyncClient("gateway.invalid:50050") as client:
        assert (await client.count_tokens("?")).prompt_tokens == 5
    assert proxy.targets[0] == "gateway.invalid:50050"


async def test_an_error_names_the_proxy_without_its_password(proxy: Proxy) -> None:
    async with AsyncClient("gateway.invalid:50050") as client:
        with pytest.raises(Unavailable) as caught:
            await client.models()
    assert caught.value.reason == "PROXY_FAILED"
    assert f"at gateway.invalid:50050 through the proxy 127.0.0.1:{proxy.port}" in caught.value.message
    assert "secret" not in caught.value.message
    async with AsyncClient("elsewhere.invalid:50050", use_proxy=False) as client:
        with pytest.raises(Unavailable) as caught:
            await client.models()
    assert caught.value.reason == "UNREACHABLE"
    assert "elsewhere.invalid:50050" not in proxy.targets  # the first client may still try for a moment


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"http_proxy": "http://proxy:3128"}, "proxy:3128"),
        ({"http_proxy": "http://a:1", "https_proxy": "http://b:2"}, "b:2"),
        ({"http_proxy": "http://a:1", "https_proxy": "http://b:2", "grpc_proxy": "http://c:3"}, "c:3"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "other, host.example.com"}, None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": ".example.com"}, None),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "example.org"}, "proxy:3128"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "com", "no_grpc_proxy": "org"}, "proxy:3128"),
        ({"http_proxy": "nonsense"}, None),
    ],
)
def test_the_proxy_is_the_one_grpc_uses(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str | None
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for target in ("host.example.com:50050", "dns:///host.example.com:50050"):
        assert environment_proxy(target) == expected
