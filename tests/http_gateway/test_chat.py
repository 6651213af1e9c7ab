"""Chat completions of the real stack in OpenAI's form."""

import json
import math
from typing import Any

import pytest

from http_gateway.schemas.answers import ChatCompletion, ChatCompletionChunk
from tandem.client import AsyncClient
from tandem.stack import Stack
from tests.conftest import TAG
from tests.http_gateway.doors import CHAT, RunningDoor

LONG: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True}
WARM: dict[str, Any] = {**LONG, "temperature": 1.5, "seed": 7}


def check_answer(body: str) -> ChatCompletion:
    """Return an answer that has exactly the documented fields."""
    return ChatCompletion.model_validate_json(body)


async def test_an_answer_equals_the_gateways(door: RunningDoor, stack: Stack) -> None:
    response = await door.chat("Go on.", **WARM)
    answer = check_answer(response.text)
    async with AsyncClient(stack.address) as client:
        expected = await client.ask("Go on.", **WARM)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected.text, "length")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.usage.prompt_tokens, 24)
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert answer.tandem.release == TAG
    assert answer.tandem.timings_ms.total >= answer.tandem.timings_ms.first_token > 0
    assert answer.model == "default"


async def test_a_streamed_answer_has_the_same_text(door: RunningDoor) -> None:
    whole = check_answer((await door.chat("Go on.", **WARM)).text)
    events = await door.events("Go on.", **WARM)
    assert events.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = [ChatCompletionChunk.model_validate_json(json.dumps(chunk)) for chunk in events.chunks]
    assert events.text() == whole.choices[0].message.content
    assert events.is_done
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].tandem is not None
    assert len({chunk.id for chunk in chunks}) == 1
    assert "usage" not in events.chunks[0]


async def test_usage_comes_in_a_last_chunk_if_asked_for(door: RunningDoor) -> None:
    events = await door.events("Go on.", **LONG, stream_options={"include_usage": True})
    *others, last = events.chunks
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 24)
    assert last["tandem"]["release"] == TAG
    assert all(chunk["usage"] is None for chunk in others)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_several_choices_are_those_of_the_following_seeds(door: RunningDoor, is_streamed: bool) -> None:
    expected = [
        (await door.chat("Go on.", **{**WARM, "seed": seed})).json()["choices"][0]["message"]["content"]
        for seed in (7, 8, 9)
    ]
    if is_streamed:
        events = await door.events("Go on.", **WARM, n=3, stream_options={"include_usage": True})
        texts, usage = [events.text(index) for index in range(3)], events.chunks[-1]["usage"]
    else:
        answer = check_answer((await door.chat("Go on.", **WARM, n=3)).text)
        texts, usage = [choice.message.content or "" for choice in answer.choices], answer.usage.model_dump()
    assert texts == expected
    assert len(set(texts)) == 3
    assert usage["completion_tokens"] == 72


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_logprobs_name_each_token_with_its_bytes(door: RunningDoor, is_streamed: bool) -> None:
    fields: dict[str, Any] = {**WARM, "logprobs": True, "top_logprobs": 3}
    if is_streamed:
        events = await door.events("Go on.", **fields)
        text = events.text()
        parts = [choice["logprobs"] for chunk in events.chunks for choice in chunk["choices"] if choice["logprobs"]]
        content = [entry for part in parts for entry in part["content"]]
    else:
        choice = (await door.chat("Go on.", **fields)).json()["choices"][0]
        text, content = choice["message"]["content"], choice["logprobs"]["content"]
    assert len(content) == 24
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode(errors="replace") == text
    for entry in content:
        tops = [top["logprob"] for top in entry["top_logprobs"]]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert entry["logprob"] <= tops[0] + 1e-6
        assert sum(map(math.exp, tops)) <= 1 + 1e-3


async def test_without_top_logprobs_only_chosen_tokens_have_one(door: RunningDoor) -> None:
    choice = (await door.chat("Go on.", **LONG, logprobs=True)).json()["choices"][0]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[]] * 24
    assert (await door.chat("Go on.", **LONG)).json()["choices"][0]["logprobs"] is None


async def test_a_stop_string_ends_the_answer_before_it(door: RunningDoor) -> None:
    whole = (await door.chat("Go on.", **WARM)).json()["choices"][0]["message"]["content"]
    stop = whole[4:6]
    choice = (await door.chat("Go on.", **WARM, stop=stop)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")


async def test_a_bias_decides_every_token(door: RunningDoor) -> None:
    content = (await door.chat("Go on.", **LONG, logprobs=True, logit_bias={"65": 100})).json()
    tokens = {entry["token"] for entry in content["choices"][0]["logprobs"]["content"]}
    assert len(tokens) == 1


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


async def test_an_answer_fits_its_schema(door: RunningDoor) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "bag", "schema": SCHEMA, "strict": True}}
    for fields in ({"response_format": form}, {"guided_json": SCHEMA}, {"guided_json": json.dumps(SCHEMA)}):
        response = await door.chat("Describe the bag.", **fields, temperature=1, seed=1, max_tokens=60)
        content = json.loads(response.json()["choices"][0]["message"]["content"])
        assert content["colour"] in ("red", "blue")
        assert 1 <= content["count"] <= 9


async def test_other_forms_constrain_the_answer_too(door: RunningDoor) -> None:
    async def ask(**fields: Any) -> str:
        response = await door.chat("Which?", **fields, temperature=1, seed=3, max_tokens=200)
        return str(response.json()["choices"][0]["message"]["content"])

    assert await ask(guided_choice=["yes", "no"]) in ("yes", "no")
    assert (await ask(guided_regex="[0-9]{3}-[0-9]{2}")).replace("-", "").isdigit()
    assert (await ask(response_format={"type": "json_object"})).startswith("{")
    assert await ask(response_format={"type": "text"})


async def test_a_model_or_a_header_pins_a_release(door: RunningDoor) -> None:
    pinned = (await door.chat("Hi.", **LONG, model=TAG)).json()
    assert (pinned["model"], pinned["tandem"]["release"]) == (TAG, TAG)
    for fields in ({"model": "other-v1.0.0"}, {"headers": {"x-tandem-release": "other-v1.0.0"}}):
        response = await door.chat("Hi.", **fields)
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "not_found_error"
        assert TAG in response.json()["error"]["message"]


async def test_the_request_id_is_the_clients_or_a_fresh_one(door: RunningDoor) -> None:
    response = await door.chat("Hi.", **LONG, headers={"x-request-id": "mine.1"})
    assert response.headers["x-request-id"] == "mine.1"
    assert (response.json()["id"], response.json()["tandem"]["request_id"]) == ("chatcmpl-mine.1", "mine.1")
    fresh = (await door.chat("Hi.", **LONG, headers={"x-request-id": "not valid!"})).headers["x-request-id"]
    assert len(fresh) == 32


async def test_an_answer_can_continue_the_assistants_message(door: RunningDoor) -> None:
    turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "The bag"}]
    body = {"messages": turns, **LONG}
    assert (await door.client.post(CHAT, json=body)).json()["error"]["code"] == "LAST_NOT_USER"
    continued = await door.client.post(CHAT, json={**body, "continue_final_message": True})
    assert check_answer(continued.text).usage.completion_tokens == 24


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"messages": []}, 400, "NO_MESSAGES", "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "EMPTY_PART", "messages[0].content[0]"),
        ({"messages": [{"role": "system", "content": "Hi."}]}, 400, "LAST_NOT_USER", "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "Hi."}]}, 400, "BAD_FIELD", "messages[0].role"),
        ({"temperature": -1}, 400, "BAD_FIELD", "temperature"),
        ({"stop": ["x"] * 17}, 400, "TOO_MANY_STOP_STRINGS", "stop"),
        ({"user": "x" * 257}, 400, "BAD_ROUTING_KEY", "user"),
        ({"max_tokens": 100_000}, 400, "PROMPT_TOO_LONG", "messages"),
        ({"n": 17}, 400, "BAD_FIELD", "n"),
        ({"top_logprobs": 3}, 400, "BAD_FIELD", "top_logprobs"),
        ({"stream_options": {}}, 400, "BAD_FIELD", "stream_options"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, 400, "BAD_FIELD", "response_format"),
        ({"max_token": 3}, 400, "UNKNOWN_FIELD", "max_token"),
        ({"functions": []}, 400, "UNSUPPORTED_FIELD", "functions"),
        ({"model": "übel"}, 400, "BAD_FIELD", "model"),
    ],
)
async def test_a_bad_field_is_named_in_openais_form(
    door: RunningDoor, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    body = {"messages": [{"role": "user", "content": "Hi."}], **fields}
    response = await door.client.post(CHAT, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["request_id"] == response.headers["x-request-id"]
    assert error["message"].endswith((".", "?"))


async def test_ignored_fields_change_nothing(door: RunningDoor) -> None:
    """Also those of the answer, which clients send back."""
    first = (await door.chat("Go on.", **WARM)).json()
    ignored = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low"}
    second = (await door.chat("Go on.", **WARM, **ignored, frequency_penalty=None)).json()
    assert second["choices"][0]["message"] == first["choices"][0]["message"]
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Go on."}], "name": "ann"},
        first["choices"][0]["message"],
        {"role": "user", "content": "And?"},
    ]
    assert (await door.client.post(CHAT, json={"messages": turns, **LONG})).status_code == 200
