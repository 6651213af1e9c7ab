"""No body makes the server fail: at worst it is refused."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from http_gateway.openapi import document
from http_gateway.schemas.errors import ErrorBody
from tandem.stack import Stack
from tests.http_gateway.doors import CHAT, RunningDoor, question, running_door
from tests.http_gateway.schema_bodies import ANYTHING, bodies

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LIMITS = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


class Loop:
    """A door on an event loop of its own.

    Hypothesis runs only tests that are not async.
    """

    def __init__(self, gateway: str) -> None:
        self._runner = asyncio.Runner()
        self._context = running_door(gateway)
        self._door: RunningDoor = self._runner.run(self._context.__aenter__())

    def post(self, body: bytes, path: str = CHAT, kind: str = "application/json") -> None:
        """Check the response to one body."""
        response = self._runner.run(self._door.client.post(path, content=body, headers={"content-type": kind}))
        event(str(response.status_code))
        if response.status_code != 200:
            assert response.status_code < 500, response.text
            ErrorBody.model_validate_json(response.text)
        elif response.headers["content-type"].startswith("text/event-stream"):
            assert '"error"' not in response.text.split("\n\n")[0]

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def loop(stack: Stack) -> Iterator[Loop]:
    loop = Loop(stack.address)
    yield loop
    loop.close()


DEFINITIONS: dict[str, Any] = json.loads(document())["components"]["schemas"]
# Short answers, and few of them: the fuzz is about bodies.
CHAT_REQUEST = {**DEFINITIONS["ChatRequest"], "required": ["messages", "max_tokens"]}
CHAT_REQUEST["properties"] = {
    **CHAT_REQUEST["properties"],
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": 4},
    "max_completion_tokens": {"type": "null"},
    "n": {"type": "integer", "minimum": 1, "maximum": 2},
}


@LIMITS
@given(bodies(CHAT_REQUEST, DEFINITIONS))
def test_bodies_of_the_schema(loop: Loop, body: Any) -> None:
    loop.post(json.dumps(body).encode())


@LIMITS
@given(bodies(CHAT_REQUEST, DEFINITIONS), st.text(st.characters(categories=["L", "P"]), min_size=1, max_size=30))
def test_a_question_with_any_options(loop: Loop, body: Any, text: str) -> None:
    loop.post(json.dumps({**body, **question(f"Say {text}"), "model": None}).encode())


@LIMITS
@given(st.sampled_from(sorted(CHAT_REQUEST["properties"])), ANYTHING)
def test_any_value_in_any_field(loop: Loop, name: str, value: Any) -> None:
    loop.post(json.dumps({**question("Hello?", max_tokens=3), name: value}).encode())


@LIMITS
@given(
    st.lists(st.fixed_dictionaries({}, optional={"role": ANYTHING, "content": ANYTHING, "name": ANYTHING}), max_size=3)
    | ANYTHING
)
def test_any_messages(loop: Loop, messages: Any) -> None:
    loop.post(json.dumps({"messages": messages, "max_tokens": 3}).encode())


@LIMITS
@given(ANYTHING.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200))
def test_any_bytes(loop: Loop, body: bytes) -> None:
    loop.post(body)


@LIMITS
@given(st.data())
def test_cut_and_changed_bodies(loop: Loop, data: st.DataObject) -> None:
    body = bytearray(json.dumps(question("好 Hello?", max_tokens=3, stop=["a"], logit_bias={"5": 1})).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    loop.post(bytes(body[: data.draw(st.integers(0, len(body)))]))


@LIMITS
@given(st.sampled_from(["Tokenize", "Detokenize"]), st.data())
def test_bodies_about_tokens(loop: Loop, name: str, data: st.DataObject) -> None:
    body = data.draw(bodies(DEFINITIONS[f"{name}Request"], DEFINITIONS) | ANYTHING)
    loop.post(json.dumps(body).encode(), f"/{name.lower()}")


FORM_PARTS = st.sampled_from(
    [
        *(b"--x", b"--x--", b"\r\n", b"\r\n\r\n", b"content-disposition: form-data", b"; name=file", b"; filename=a"),
        *(b"; name=purpose", b"; filename*=utf-8''%ff", b'; name="', b"content-type: image/png", b"image", b"vision"),
        b"--x\r\ncontent-disposition: form-data; name=file; filename=a\r\n\r\n",
    ]
)


@LIMITS
@given(st.lists(FORM_PARTS | st.binary(max_size=30), max_size=8).map(b"".join))
def test_any_form(loop: Loop, body: bytes) -> None:
    loop.post(body, "/v1/files", "multipart/form-data; boundary=x")
