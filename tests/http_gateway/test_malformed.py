"""Requests that a proxy could read in another way are refused."""

import json

import pytest

from tests.http_gateway.conftest import OpenDoor
from tests.http_gateway.doors import GET, POST, exchange, question, status_of
from tests.http_gateway.scripted import Script

BODY = json.dumps(question("Hello?")).encode()


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: +5\r\n",
        b"content-length: 5 5\r\n",
        b"content-length: -5\r\n",
        b"transfer-encoding: gzip, chunked, identity\r\n",
        b"transfer-encoding: chunked, chunked\r\ntransfer-encoding: xchunked\r\n",
        b"transfer-encoding : chunked\r\n",
        b"x-ok: 1\nx-injected: 1\r\n",
        b"x-bad: \x00\r\n",
        b" folded: 1\r\n",
    ],
)
async def test_ambiguous_requests_are_refused(open_door: OpenDoor, headers: bytes) -> None:
    """A proxy could take the rest for another client's request."""
    script = Script()
    door = await open_door(script.handlers, header_timeout_s=2, body_timeout_s=1, keep_alive_s=1)
    smuggled = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = await exchange(door.port, POST + headers + b"\r\n" + b"0\r\n\r\n" + smuggled)
    assert answer == b"" or status_of(answer) in (400, 408)
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert b'"version"' not in answer
    assert not script.requests


async def test_trailers_are_no_headers(open_door: OpenDoor) -> None:
    """A proxy that sets headers does not look at trailers."""
    script = Script()
    door = await open_door(script.handlers)
    chunk = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n"
    trailers = b"authorization: Bearer other\r\nx-tandem-release: other-v1.0.0\r\n\r\n"
    head = POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    for pieces in ([head + chunk + trailers], [head, chunk, trailers]):
        answer = await exchange(door.port, *pieces, pause_s=0.05)
        assert status_of(answer) == 200
        assert not {"authorization", "x-tandem-release"} & script.metadata[-1].keys()


UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize("pause_s", [0, 0.05])
async def test_offers_of_another_protocol_are_ignored(open_door: OpenDoor, pause_s: float) -> None:
    """Java's client offers HTTP/2 with every request."""
    script = Script()
    door = await open_door(script.handlers)
    body = json.dumps(question("GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n")).encode()
    post = POST + UPGRADE + b"content-length: %d\r\n\r\n" % len(body)
    chunked = [POST + UPGRADE + b"transfer-encoding: chunked\r\n\r\n", b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"]
    close = GET + b"connection: close, upgrade\r\nupgrade: websocket\r\n\r\n"
    pieces = [post, body, *chunked, GET + UPGRADE + b"\r\n", post + body, close]
    answer = await exchange(door.port, *(pieces if pause_s else [b"".join(pieces)]), pause_s=pause_s)
    assert answer.count(b"HTTP/1.1 200 OK") == 5
    assert answer.count(b"HTTP/1.1 ") == 5
    assert len(script.requests) == 3


async def test_a_body_behind_an_offer_is_no_request(open_door: OpenDoor) -> None:
    door = await open_door({})
    smuggled = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"
    post = b"POST /no HTTP/1.1\r\nhost: localhost\r\n" + UPGRADE + b"content-length: %d\r\n\r\n" % len(smuggled)
    answer = await exchange(door.port, post, smuggled, GET + b"connection: close\r\n\r\n", pause_s=0.1)
    assert (answer.count(b"HTTP/1.1 "), b'"version"' in answer) == (2, False)
    many = (b"GET /no HTTP/1.1\r\n" + UPGRADE + b"\r\n") * 1500 + GET + b"connection: close\r\n\r\n"
    assert (await exchange(door.port, many)).count(b"HTTP/1.1 404") == 1500
    answer = await exchange(door.port, b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n", smuggled)
    assert (status_of(answer), answer.count(b"HTTP/1.1 ")) == (405, 1)


async def test_responses_repeat_no_header_of_a_request(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers)
    for injected in (b"x-request-id: z\rb: c", b"x-request-id: z b", b"x-request-id: " + b"z" * 129):
        answer = await exchange(door.port, GET + injected + b"\r\nconnection: close\r\n\r\n")
        assert b"\r\nb: c" not in answer
        assert b"x-request-id: z" not in answer
    answer = await exchange(door.port, b"GET /no/%0d%0ab:%20c HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert (status_of(answer), b"\r\nb: c" in answer) == (404, False)
    answer = await exchange(door.port, b"GET /healthz/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    assert (status_of(answer), b"location" in answer.lower()) == (404, False)


async def test_bytes_after_a_request_never_reach_its_response(open_door: OpenDoor) -> None:
    """A refusal would become part of the answer."""
    script = Script(hangs=True)
    door = await open_door(script.handlers, header_timeout_s=0.3)
    body = json.dumps(question("Hello?", stream=True)).encode()
    for rest in (b"GET / HT", b"\x00\x01garbage\r\n\r\n"):
        answer = await exchange(door.port, POST + b"content-length: %d\r\n\r\n" % len(body) + body, rest, pause_s=0.2)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1 ") == 1
