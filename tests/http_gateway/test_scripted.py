"""Errors, cancellation and back-pressure, with a scripted gateway."""

import asyncio
import contextlib
import json
import socket
import time
from typing import Any

import httpx2
import pytest

from chassis.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    TandemError,
    Unauthenticated,
    Unavailable,
)
from http_gateway.chat import answer, report, stream
from tests.http_gateway.conftest import OpenDoor
from tests.http_gateway.doors import CHAT, question, running_door
from tests.http_gateway.scripted import Script

ERRORS: list[tuple[TandemError, int, str]] = [
    (InvalidArgument("No.", reason="EMPTY_QUESTION", field="messages[2].parts[1].image"), 400, "invalid_request_error"),
    (Unauthenticated("No.", reason="UNKNOWN_API_KEY"), 401, "authentication_error"),
    (PermissionDenied("No.", reason="NOT_OPERATOR"), 403, "permission_error"),
    (InvalidArgument("No.", reason="IMAGE_TOO_LARGE"), 413, "invalid_request_error"),
    (ResourceExhausted("No.", reason="QUEUE_FULL", retry_after_s=1.5), 429, "rate_limit_error"),
    (Internal("No.", reason="NOT_FINITE"), 500, "server_error"),
    (Unavailable("No.", reason="MODEL_DRAINING", retry_after_s=0.2), 503, "server_error"),
    (FailedPrecondition("No.", reason="RELEASE_MISMATCH"), 503, "server_error"),
    (DeadlineExceeded("No."), 504, "server_error"),
]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_error_before_the_answer_has_its_status(open_door: OpenDoor, is_streamed: bool) -> None:
    for error, status, kind in ERRORS:
        door = await open_door(Script(texts=(), error=error).handlers)
        response = await door.chat(stream=is_streamed)
        content = response.json()["error"]
        assert (response.status_code, content["type"], content["code"]) == (status, kind, error.reason)
        assert content["message"] == "No."
        assert content["param"] == ("messages[2].content[1]" if error.field else None)
        expected = {1.5: ("2", "1500"), 0.2: ("1", "200")}.get(error.retry_after_s or 0, (None, None))
        assert (response.headers.get("retry-after"), response.headers.get("retry-after-ms")) == expected
        assert ("www-authenticate" in response.headers) == (status == 401)


async def test_an_error_within_a_stream_is_its_last_event(open_door: OpenDoor) -> None:
    door = await open_door(Script(error=Unavailable("Gone.", reason="LANGUAGE_FAILED")).handlers)
    events = await door.events()
    assert (events.status, events.text(), events.is_done) == (200, "Hello", False)
    assert (events.chunks[-1]["error"]["code"], events.chunks[-1]["error"]["message"]) == ("LANGUAGE_FAILED", "Gone.")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_answer_without_its_end_is_an_error(open_door: OpenDoor, is_streamed: bool) -> None:
    door = await open_door(Script(is_truncated=True).handlers)
    if is_streamed:
        assert (await door.events()).chunks[-1]["error"]["code"] == "TRUNCATED_STREAM"
    else:
        response = await door.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (500, "TRUNCATED_STREAM")


async def test_without_a_gateway_the_error_names_no_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with running_door(f"127.0.0.1:{port}") as door:
        response = await door.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "UNAVAILABLE")
        assert str(port) not in response.text
        ready = await door.client.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, "The gateway cannot be reached.")
        assert (await door.client.get("/healthz")).status_code == 200


async def test_key_pin_id_and_routing_key_reach_the_gateway(open_door: OpenDoor) -> None:
    script = Script()
    door = await open_door(script.handlers)
    headers = {"authorization": "Bearer secret", "x-request-id": "one", "x-tandem-release": "a-v1.0.0"}
    response = await door.chat(headers=headers, user="ann", model="b-v1.0.0")
    assert response.status_code == 200
    sent = script.metadata[0]
    assert (sent["authorization"], sent["x-request-id"], sent["x-tandem-release"]) == (
        "Bearer secret",
        "one",
        "a-v1.0.0",
    )
    assert script.requests[0].routing_key == "ann"
    await door.chat(model="b-v1.0.0", prompt_cache_key="bob")
    assert script.metadata[1]["x-tandem-release"] == "b-v1.0.0"
    assert "authorization" not in script.metadata[1]
    assert script.requests[1].routing_key == "bob"


async def test_choices_share_a_release_and_have_ids_of_their_own(open_door: OpenDoor) -> None:
    script = Script()
    door = await open_door(script.handlers)
    await door.chat(n=3, headers={"x-request-id": "one"}, seed=2**64 - 1)
    assert sorted(one["x-request-id"] for one in script.metadata) == ["one-0", "one-1", "one-2"]
    assert {request.routing_key for request in script.requests} == {"one"}
    assert {request.sampling.seed for request in script.requests} == {2**64 - 1, 0, 1}


async def test_one_failed_choice_fails_the_request_and_cancels_the_others(open_door: OpenDoor) -> None:
    script = Script(hangs=True)

    async def generate(self: object, request: Any, context: Any) -> Any:
        if request.sampling.seed == 1:
            raise ResourceExhausted("Full.", reason="QUEUE_FULL")
        async for response in script.handlers["Generate"](self, request, context):
            yield response

    door = await open_door({"Generate": generate})
    assert (await door.chat(n=2, seed=0)).status_code == 429
    await asyncio.wait_for(script.cancelled.wait(), 5)


@pytest.mark.parametrize("num_choices", [1, 2])
@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("texts", [(), ("Hel", "lo")])
async def test_a_client_that_leaves_cancels_within_100_ms(
    open_door: OpenDoor, texts: tuple[str, ...], is_streamed: bool, num_choices: int
) -> None:
    """Before and after the first token.

    On a busy machine the best of three tries counts.
    """
    seconds = []
    for _ in range(3):
        script = Script(texts=texts, hangs=True)
        door = await open_door(script.handlers)
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(http_post(question("Hello?", stream=is_streamed, n=num_choices)))
        await script.until_sent(num_choices, len(texts) * num_choices)
        left = time.monotonic()
        writer.close()
        await asyncio.wait_for(script.cancelled.wait(), 5)
        seconds.append(time.monotonic() - left)
    assert min(seconds) < 0.1


async def test_a_slow_reader_slows_the_gateway(open_door: OpenDoor) -> None:
    """So the gateway's own limits see the slow client."""
    num_texts, size = 4000, 16_000
    script = Script(texts=["x" * size] * num_texts)
    door = await open_door(script.handlers)
    with socket.create_connection(("127.0.0.1", door.port)) as client:
        client.sendall(http_post(question("Hello?", stream=True)))
        client.setblocking(False)
        sent = -1
        while sent != script.num_sent:  # until it stands still
            sent = script.num_sent
            await asyncio.sleep(0.5)
        assert 0 < sent < num_texts / 4
        loop, num_bytes = asyncio.get_running_loop(), 0
        while (data := await loop.sock_recv(client, 2**20)) and b"[DONE]" not in data[-100:]:
            num_bytes += len(data)
        assert num_bytes > num_texts * size
    assert script.num_sent == num_texts


async def test_a_reader_that_stalls_is_dropped(open_door: OpenDoor) -> None:
    script = Script(texts=["x" * 16_000] * 4000)
    door = await open_door(script.handlers, stall_timeout_s=0.5)
    with socket.create_connection(("127.0.0.1", door.port)) as client:
        client.sendall(http_post(question("Hello?", stream=True)))
        await asyncio.wait_for(script.cancelled.wait(), 20)


async def test_a_drain_finishes_running_answers_and_takes_no_more(open_door: OpenDoor) -> None:
    script = Script(hangs=True)
    door = await open_door(script.handlers, drain_s=20)
    streaming = asyncio.create_task(door.events())
    await script.until_sent(1, 2)
    door.life.drain.set()
    await asyncio.sleep(0.1)  # draining, but still listening: balancers see it
    ready = await door.client.get("/readyz")
    assert (ready.status_code, ready.headers["connection"]) == (503, "close")
    await asyncio.sleep(1)
    with pytest.raises(httpx2.ConnectError):
        async with httpx2.AsyncClient(trust_env=False) as other:
            await other.get(f"http://127.0.0.1:{door.port}/healthz")
    script.go.set()
    events = await streaming
    assert (events.text(), events.is_done) == ("Hello", True)
    await asyncio.wait_for(asyncio.shield(door.serving), 5)


async def test_the_end_of_the_drain_says_so_in_the_stream(open_door: OpenDoor) -> None:
    script = Script(hangs=True)
    door = await open_door(script.handlers, drain_s=1)
    streaming = asyncio.create_task(door.events())
    await script.until_sent(1, 2)
    door.life.drain.set()
    events = await streaming
    assert events.chunks[-1]["error"]["code"] == "STOPPING"
    await asyncio.wait_for(script.cancelled.wait(), 5)
    await asyncio.wait_for(asyncio.shield(door.serving), 10)


async def test_requests_that_end_early_leave_nothing_behind(open_door: OpenDoor) -> None:
    script = Script(hangs=True)
    door = await open_door(script.handlers)
    script.go.set()
    await door.chat()  # opens the connection to the gateway
    script.go.clear()
    before = len(asyncio.all_tasks())
    for number in range(30):
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        request = http_post(question("Hello?", stream=bool(number % 2), n=1 + number % 3))
        writer.write(request[: len(request) - number % 5])  # some leave within their body
        await asyncio.sleep(0.002 * (number % 7))
        writer.close()
    async with asyncio.timeout(20):
        while True:
            lines = (await door.client.get("/metrics")).text.splitlines()
            if len(asyncio.all_tasks()) <= before and "tandem_http_in_flight 1.0" in lines:  # this very request
                break
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_bug_is_an_error_with_the_request_id(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(report, "usage", fail)
    monkeypatch.setattr(answer, "usage", fail)
    monkeypatch.setattr(stream.ChunkEncoder, "_finish", fail)
    door = await open_door(Script().handlers)
    if is_streamed:
        events = await door.events(headers={"x-request-id": "mine"})
        assert events.text() == "Hello"
        error = events.chunks[-1]["error"]
    else:
        response = await door.chat(headers={"x-request-id": "mine"})
        assert response.status_code == 500
        error = response.json()["error"]
    assert (error["code"], "mine" in error["message"], "secret" in error["message"]) == ("INTERNAL", True, False)


async def test_metrics_count_a_client_that_left(open_door: OpenDoor) -> None:
    script = Script(hangs=True)
    door = await open_door(script.handlers)
    name = 'tandem_http_requests_total{path="/v1/chat/completions",status="499"}'

    async def count() -> float:
        lines = (await door.client.get("/metrics")).text.splitlines()
        return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(name)), "0"))

    before = await count()
    with contextlib.suppress(httpx2.ReadTimeout):
        await door.client.post(CHAT, json=question("Hello?"), timeout=0.3)
    await asyncio.wait_for(script.cancelled.wait(), 5)
    assert await count() == before + 1


def http_post(body: dict[str, Any], *headers: str) -> bytes:
    """Return the bytes of a chat completion."""
    content = json.dumps(body).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "content-type: application/json", *headers]
    return ("\r\n".join([*lines, f"content-length: {len(content)}"]) + "\r\n\r\n").encode() + content
