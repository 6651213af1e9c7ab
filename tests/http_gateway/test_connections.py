"""Slow, endless and malformed requests harm no others."""

import asyncio
import json
import time

import pytest

from http_gateway.connections import MAX_HEADER_BYTES
from tests.http_gateway.conftest import OpenDoor
from tests.http_gateway.doors import CHAT, GET, POST, exchange, question, status_of
from tests.http_gateway.scripted import Script

BODY = json.dumps(question("Hello?")).encode()


async def test_200_connections_at_a_byte_a_second_do_not_stop_others(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers)
    slow = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(200)]

    async def drip() -> None:
        for position in range(100):
            for number, (_, writer) in enumerate(slow):
                request = GET + b"\r\n" if number % 2 else POST + b"content-length: 99\r\n\r\n" + BODY
                writer.write(request[position : position + 1])
            await asyncio.sleep(1)

    dripping = asyncio.create_task(drip())
    try:
        seconds = []
        for _ in range(20):
            began = time.monotonic()
            assert (await door.chat()).status_code == 200
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.1)
        assert sorted(seconds)[10] < 0.2
    finally:
        dripping.cancel()
        for _, writer in slow:
            writer.close()


async def test_late_headers_are_refused(open_door: OpenDoor) -> None:
    door = await open_door({}, header_timeout_s=0.3)
    for pieces in ([b""], [GET], [GET, b"x", b"-"]):
        answer = await asyncio.wait_for(exchange(door.port, *pieces, pause_s=0.05), 5)
        assert status_of(answer) == 408
        assert b'"code":"HEADER_TIMEOUT"' in answer


async def test_headers_of_the_next_request_have_a_time_of_their_own(open_door: OpenDoor) -> None:
    door = await open_door({}, header_timeout_s=0.5, keep_alive_s=30)
    answer = await exchange(door.port, GET + b"\r\n", GET + b"\r\n", GET, pause_s=0.4)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert answer.count(b"HTTP/1.1 408") == 1


async def test_an_idle_connection_is_closed(open_door: OpenDoor) -> None:
    door = await open_door({}, header_timeout_s=30, keep_alive_s=1)
    began = time.monotonic()
    answer = await exchange(door.port, GET + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert 0.5 < time.monotonic() - began < 5


@pytest.mark.parametrize("form", ["one header", "many headers", "url", "trailers"])
async def test_endless_headers_are_refused(open_door: OpenDoor, form: str) -> None:
    door = await open_door(Script().handlers, body_timeout_s=0.5)
    size = 2 * MAX_HEADER_BYTES
    if form == "one header":
        pieces = [GET + b"x-long: ", b"x" * size]
    elif form == "many headers":
        pieces = [GET, b"x-many: y\r\n" * (size // 11)]
    elif form == "url":
        pieces = [b"GET /", b"x" * size]
    else:
        pieces = [POST + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x-many: y\r\n" * (4 * size // 11)]
    answer = await exchange(door.port, *pieces)
    assert not answer or status_of(answer) == (408 if form == "trailers" else 431)
    assert (await door.chat()).status_code == 200


async def test_a_large_body_is_refused_before_it_is_read(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers, max_body_bytes=1000)
    answer = await exchange(door.port, POST + b"content-length: 999999999999\r\n\r\n")
    assert status_of(answer) == 413
    assert b'"code":"BODY_TOO_LARGE"' in answer


async def test_a_client_that_sends_too_much_still_reads_why(open_door: OpenDoor) -> None:
    """Clients read the response after they sent their body."""
    door = await open_door(Script().handlers, max_body_bytes=1000)
    response = await door.chat("x" * 3_000_000)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "BODY_TOO_LARGE")


async def test_a_chunked_body_is_bounded_too(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers, max_body_bytes=1000)
    chunk = b"64\r\n" + b"x" * 100 + b"\r\n"
    answer = await exchange(door.port, POST + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 20, b"0\r\n\r\n")
    assert status_of(answer) == 413


async def test_all_bodies_together_are_bounded(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers, max_bodies_bytes=5000)
    assert (await door.chat("x" * 4000)).status_code == 200
    response = await door.chat("x" * 6000)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "BODIES_BUSY")
    assert (await door.chat("x" * 4000)).status_code == 200  # the bytes of both are free again


async def test_a_late_body_is_refused(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers, body_timeout_s=0.3)
    answer = await exchange(door.port, POST + b"content-length: 99\r\n\r\n", b"{", b'"', pause_s=0.1)
    assert status_of(answer) == 408
    assert b'"code":"BODY_TIMEOUT"' in answer


async def test_a_connection_serves_many_requests(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers)
    request = POST + b"content-length: %d\r\n" % len(BODY)
    pieces = [request + b"\r\n" + BODY] * 3 + [request + b"connection: close\r\n\r\n" + BODY]
    answer = await exchange(door.port, b"".join(pieces))  # pipelined, too
    assert answer.count(b"HTTP/1.1 200") == 4


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_a_foreign_page_cannot_post(open_door: OpenDoor, kind: str | None) -> None:
    """Browsers send such types to any origin without asking it."""
    script = Script()
    door = await open_door(script.handlers)
    response = await door.client.post(CHAT, content=BODY, headers={"content-type": kind} if kind else {})
    assert (response.status_code, response.json()["error"]["code"]) == (415, "NOT_JSON")
    assert not script.requests


async def test_a_foreign_page_cannot_send_a_form(open_door: OpenDoor) -> None:
    door = await open_door({}, cors_origins=("https://chat.example",))
    for site, origin, status in (
        ("cross-site", "https://evil.example", 403),
        ("same-site", "http://localhost:9", 403),
        ("cross-site", "https://chat.example", 404),
        ("same-origin", "http://localhost:8080", 404),
        ("none", None, 404),
    ):
        headers = {"sec-fetch-site": site, **({"origin": origin} if origin else {})}
        response = await door.client.post("/no", files={"file": b"x"}, headers=headers)
        assert response.status_code == status, site


async def test_a_rebound_name_is_refused(open_door: OpenDoor) -> None:
    door = await open_door(Script().handlers)
    for host, status in (("evil.example", 421), ("localhost:8080", 200), ("LOCALHOST", 200), ("[::1]:1", 200)):
        assert (await door.client.get("/healthz", headers={"host": host})).status_code == status
    named = await open_door(Script().handlers, hosts=("door.example",))
    for host, status in (("door.example", 200), ("localhost", 421)):
        assert (await named.client.get("/healthz", headers={"host": host})).status_code == status


async def test_other_origins_are_allowed_only_if_listed(open_door: OpenDoor) -> None:
    asking = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    closed = await open_door(Script().handlers)
    refused = await closed.client.options(CHAT, headers=asking)
    assert "access-control-allow-origin" not in refused.headers
    assert refused.status_code == 405
    opened = await open_door(Script().handlers, cors_origins=("https://chat.example",))
    allowed = await opened.client.options(CHAT, headers=asking)
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    other = await opened.client.get("/healthz", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


async def test_unknown_paths_and_methods_are_errors_in_openais_form(open_door: OpenDoor) -> None:
    door = await open_door({})
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "NO_SUCH_PATH"),
        ("GET", CHAT, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/healthz", 405, "METHOD_NOT_ALLOWED"),
    ):
        response = await door.client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_too_many_connections_are_refused(open_door: OpenDoor) -> None:
    door = await open_door({}, max_connections=3)
    held = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(3)]
    answer = await exchange(door.port)
    assert (status_of(answer), b'"code":"CONNECTIONS_BUSY"' in answer) == (503, True)
    for _, writer in held:
        writer.close()
    await asyncio.sleep(0.1)
    assert (await door.client.get("/healthz")).status_code == 200


async def test_a_refused_path_reads_a_body_for_a_short_time_only(open_door: OpenDoor) -> None:
    door = await open_door({}, body_timeout_s=0.3)
    began = time.monotonic()
    answer = await exchange(door.port, b"POST /no HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n", b"x")
    assert status_of(answer) == 404
    assert time.monotonic() - began < 5
    assert (await door.client.post("/no", content=b"x" * 2_000_000)).status_code == 404
