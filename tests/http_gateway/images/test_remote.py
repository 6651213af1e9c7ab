"""Fetch from hostile hosts, over real sockets."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from chassis.errors import InvalidArgument, ResourceExhausted, TandemError
from http_gateway.wire.bodies import BodyBudget
from tests.http_gateway.images.remote_host import IMAGE, LIMIT, Fetcher, Host, answer, fetching, running


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with running() as host:
        yield host


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the addresses of each name, for the resolver."""
    names = {"img.test": ["127.0.0.1"]}
    real = socket.getaddrinfo

    def resolve(name: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if name in names:
            kind = [(socket.AF_INET6 if ":" in one else socket.AF_INET, one) for one in names[name]]
            return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in kind]
        return real(name, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return names


async def error_of(images: Fetcher, url: str) -> TandemError:
    with pytest.raises(TandemError) as raised:
        await images.fetch(url, "messages[0].content[1]")
    assert "127.0.0.1" not in raised.value.message
    assert "img.test" not in raised.value.message
    return raised.value


async def test_an_image_is_fetched_without_secrets(host: Host, names: dict[str, list[str]]) -> None:
    host.answers["/a.png?b=1"] = answer(IMAGE)
    async with fetching(host.url("")) as images:
        assert await images.fetch(host.url("/a.png?b=1"), "f") == IMAGE
        assert await images.fetch(host.url("/a.png?b=1"), "f") == IMAGE
    lines = host.requests[0].decode().lower().split("\r\n")
    assert lines[:2] == ["get /a.png?b=1 http/1.1", f"host: img.test:{host.port}"]
    assert not [line for line in lines if line.startswith(("cookie", "authorization", "x-"))]


async def test_a_name_with_a_private_address_is_refused_before_a_connection(
    host: Host, names: dict[str, list[str]]
) -> None:
    """Also if only one of its addresses is private."""
    for addresses in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"]):
        names["img.test"] = addresses
        async with fetching(host.url(""), networks=()) as images:
            error = await error_of(images, host.url("/a.png"))
        assert error.reason == "IMAGE_HOST_FORBIDDEN"
    assert not host.requests


async def test_a_literal_private_address_is_refused_even_if_listed(host: Host) -> None:
    url = f"http://127.0.0.1:{host.port}"
    async with fetching(url, networks=()) as images:
        with pytest.raises(InvalidArgument) as raised:
            await images.fetch(f"{url}/a.png", "f")
    assert raised.value.reason == "IMAGE_HOST_FORBIDDEN"
    assert not host.requests


async def test_the_connection_goes_to_the_checked_address(
    host: Host, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look-up, which DNS rebinding needs, never happens."""
    host.answers["/a.png"] = answer(IMAGE)
    resolved: list[str] = []
    listed = socket.getaddrinfo

    def rebinding(name: Any, *args: Any, **kwargs: Any) -> Any:
        resolved.append(name)
        found = listed(name, *args, **kwargs)
        names["img.test"] = ["10.255.255.1"]  # the next look-up would give this
        return found

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    async with fetching(host.url("")) as images:
        assert await images.fetch(host.url("/a.png"), "f") == IMAGE
    assert resolved.count("img.test") == 1


async def test_redirects_are_checked_again(host: Host, names: dict[str, list[str]]) -> None:
    names |= {"inner.test": ["127.0.0.1"], "private.test": ["10.0.0.1"]}
    host.answers["/a.png"] = answer(IMAGE)
    host.answers["/near"] = answer(b"", "location: /a.png", status="302 Found")
    for path, location in (
        ("/far", host.url("/a.png", "inner.test")),
        ("/private", host.url("/a.png", "private.test")),
        ("/scheme", "file:///etc/passwd"),
        ("/loop", "/loop"),
    ):
        host.answers[path] = answer(b"", f"location: {location}", status="301 Moved Permanently")
    async with fetching(host.url(""), host.url("", "private.test")) as images:
        assert await images.fetch(host.url("/near"), "f") == IMAGE
        reasons = [(await error_of(images, host.url(path))).reason for path in ("/far", "/private", "/scheme", "/loop")]
    assert reasons == ["IMAGE_HOST_FORBIDDEN", "IMAGE_HOST_FORBIDDEN", "BAD_IMAGE_URL", "IMAGE_URL_FAILED"]
    assert sum(b"GET /loop" in request for request in host.requests) == 4


async def test_a_large_image_is_refused_before_it_is_read(host: Host, names: dict[str, list[str]]) -> None:
    host.answers["/announced"] = answer(b"", length=LIMIT + 1)
    host.answers["/limit"] = answer(b"x" * LIMIT)

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"64\r\n" + b"x" * 100 + b"\r\n")
            await writer.drain()

    host.handlers["/endless"] = endless
    async with fetching(host.url("")) as images:
        assert await images.fetch(host.url("/limit"), "f") == b"x" * LIMIT
        for path in ("/announced", "/endless"):
            assert (await error_of(images, host.url(path))).reason == "IMAGE_TOO_LARGE"
        async with asyncio.timeout(10):
            while host.num_open > 1:  # the connection of an endless answer is closed  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_slow_host_is_given_up(host: Host, names: dict[str, list[str]]) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    host.handlers |= {"/drip": drip, "/silent": silent}
    async with fetching(host.url(""), timeout_s=0.3) as images:
        for path in ("/drip", "/silent"):
            error = await error_of(images, host.url(path))
            assert (error.reason, error.field) == ("IMAGE_URL_FAILED", "messages[0].content[1]")


@pytest.mark.parametrize(
    "response",
    [
        answer(IMAGE, status="500 Oops"),
        answer(IMAGE, status="206 Partial Content"),
        answer(b"", status="302 Found"),
        answer(IMAGE, "content-encoding: gzip"),
        b"nonsense\r\n\r\n",
        answer(IMAGE, length=900),  # closed before its end
        answer(IMAGE, f"x-large: {'x' * 200_000}"),
    ],
    ids=["status", "partial", "no location", "compressed", "nonsense", "cut short", "headers"],
)
async def test_a_wrong_answer_is_an_error_of_the_request(
    host: Host, names: dict[str, list[str]], response: bytes
) -> None:
    async def once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        await writer.drain()
        raise ConnectionError

    host.handlers["/a.png"] = once
    async with fetching(host.url("")) as images:
        assert (await error_of(images, host.url("/a.png"))).reason == "IMAGE_URL_FAILED"


async def test_a_host_that_is_gone_is_an_error_of_the_request(names: dict[str, list[str]]) -> None:
    async with running() as host:
        url = host.url("/a.png")
        names["unknown.test"] = []
    async with fetching(url.removesuffix("/a.png"), f"http://unknown.test:{host.port}") as images:
        assert (await error_of(images, url)).reason == "IMAGE_URL_FAILED"
        assert (await error_of(images, host.url("/", "unknown.test"))).reason == "IMAGE_URL_FAILED"


async def test_images_count_toward_the_memory_of_all_bodies(host: Host, names: dict[str, list[str]]) -> None:
    host.answers["/a.png"] = answer(IMAGE)
    budget = BodyBudget(len(IMAGE) + 10)
    async with fetching(host.url(""), budget=budget) as images:
        with budget.reserved() as other:
            other.add(11)
            with pytest.raises(ResourceExhausted) as raised:
                await images.fetch(host.url("/a.png"), "f")
        assert raised.value.reason == "BODIES_BUSY"
        assert await images.fetch(host.url("/a.png"), "f") == IMAGE


async def test_the_images_of_one_request_share_its_limits(host: Host, names: dict[str, list[str]]) -> None:
    """A body with many URLs must not fill the memory."""
    host.answers["/a.png"] = answer(IMAGE)
    budget = BodyBudget(10_000)
    async with fetching(host.url(""), budget=budget, max_request_bytes=2 * len(IMAGE) + 10) as images:
        with images.remote.allowance() as allowance:
            for _ in range(2):
                assert await images.remote.fetch(host.url("/a.png"), "f", allowance) == IMAGE
            with pytest.raises(InvalidArgument, match="together") as raised:
                await images.remote.fetch(host.url("/a.png"), "f", allowance)
            assert raised.value.reason == "IMAGE_TOO_LARGE"
            with pytest.raises(ResourceExhausted), budget.reserved() as other:
                other.add(10_000 - 2 * len(IMAGE) + 1)
        with budget.reserved() as other:
            other.add(10_000)


async def test_the_images_of_one_request_share_its_time(host: Host, names: dict[str, list[str]]) -> None:
    async def slow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)

    host.handlers["/a.png"], host.answers["/a.png"] = slow, answer(IMAGE)
    async with fetching(host.url(""), timeout_s=0.8) as images:
        with pytest.raises(InvalidArgument, match="did not arrive"):
            await images.fetch_many(host.url("/a.png"), 10)
    assert len(host.requests) < 4


async def test_certificates_are_checked_by_the_name_in_the_url(names: dict[str, list[str]]) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("img.test").configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    names["other.test"] = ["127.0.0.1"]
    async with running(tls) as host:
        host.answers["/a.png"] = answer(IMAGE)
        listed = (f"img.test:{host.port}", f"other.test:{host.port}")
        async with fetching(*listed, ssl_context=trusting) as images:
            assert await images.fetch(host.url("/a.png", scheme="https"), "f") == IMAGE
            error = await error_of(images, host.url("/a.png", "other.test", "https"))
            assert error.reason == "IMAGE_URL_FAILED"
        async with fetching(*listed) as images:  # the system does not know this authority
            assert (await error_of(images, host.url("/a.png", scheme="https"))).reason == "IMAGE_URL_FAILED"
