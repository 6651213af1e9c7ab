"""Chunks that are joined from parts equal those encoded as a whole."""

import json

from hypothesis import given
from hypothesis import strategies as st

from http_gateway.chat.stream import ChunkEncoder, Head, event
from http_gateway.chat.tools import ToolPlan
from http_gateway.schemas.answers import ChatCompletionChunk
from tandem.v1 import gateway_pb2
from tests.http_gateway.scripted import delta, finished

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(TEXTS, TEXTS, st.booleans(), st.integers(1, 3))
def test_a_chunk_of_text_equals_one_encoded_as_a_whole(
    text: str, model: str, include_usage: bool, num_choices: int
) -> None:
    head = Head(request_id="one", created=1, model=model)
    encoder = ChunkEncoder(head, num_choices, include_usage=include_usage, tools=ToolPlan())
    for index in range(num_choices):
        encoder.push(index, delta("first"))
        choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        whole = {"id": "chatcmpl-one", "object": "chat.completion.chunk", "created": 1, "model": model}
        whole["choices"] = [choice]
        if include_usage:
            whole["usage"] = None
        assert encoder.push(index, delta(text)) == event(whole)


@given(st.lists(st.tuples(st.integers(0, 2), TEXTS), max_size=20), st.booleans())
def test_every_stream_has_the_documented_chunks(pieces: list[tuple[int, str]], include_usage: bool) -> None:
    encoder = ChunkEncoder(
        Head(request_id="one", created=1, model="m"), 3, include_usage=include_usage, tools=ToolPlan()
    )
    written = b"".join(encoder.push(index, delta(text)) for index, text in pieces)
    written += b"".join(encoder.push(index, finished()) for index in (2, 0, 1)) + encoder.end()
    *events, done, rest = written.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    chunks = [ChatCompletionChunk.model_validate_json(one.removeprefix(b"data: ")) for one in events]
    texts, roles, reports = ["", "", ""], [0, 0, 0], 0
    for chunk in chunks:
        reports += chunk.tandem is not None
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role is not None
    assert texts == ["".join(text for index, text in pieces if index == wanted) for wanted in range(3)]
    assert (roles, reports, chunks[-1].tandem is not None) == ([1, 1, 1], 1, True)


def test_lines_of_an_event_are_never_broken() -> None:
    """A line feed would end the event's line."""
    encoder = ChunkEncoder(Head(request_id="one", created=1, model="a\nb"), 1, include_usage=False, tools=ToolPlan())
    (line,) = encoder.push(0, delta("x\r\n\ndata: y\u2028")).split(b"\n\n")[1:2]
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "x\r\n\ndata: y\u2028"


def test_a_piece_with_logprobs_has_them() -> None:
    response = gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text="好"))
    position = response.delta.logprobs.add()
    position.chosen.token_id, position.chosen.logprob, position.chosen.token = 5, float("-inf"), "好".encode()[:2]
    encoder = ChunkEncoder(Head(request_id="one", created=1, model="m"), 1, include_usage=False, tools=ToolPlan())
    encoder.push(0, delta("first"))
    chunk = ChatCompletionChunk.model_validate_json(encoder.push(0, response).removeprefix(b"data: "))
    logprobs = chunk.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content[0].model_dump() == {
        "token": "\ufffd",
        "logprob": -9999.0,
        "bytes": [0xE5, 0xA5],
        "top_logprobs": [],
    }
