"""Tokenize and detokenize."""

from typing import Any

import pytest

from tests.http_gateway.doors import RunningDoor

TEXT = "What is 这?"
TOOLS = [{"type": "function", "function": {"name": "f"}}]


async def test_a_text_and_its_tokens(door: RunningDoor) -> None:
    body = {"model": "default", "prompt": TEXT, "return_token_strs": True}
    found = (await door.client.post("/tokenize", json=body)).json()
    assert (found["count"], found["max_model_len"]) == (len(TEXT.encode()), 1024)
    assert len(found["tokens"]) == len(found["token_strs"]) == found["count"]
    assert found["token_strs"][:4] == ["W", "h", "a", "t"]
    back = await door.client.post("/detokenize", json={"tokens": found["tokens"]})
    assert back.json() == {"prompt": TEXT}


async def test_a_conversation_has_the_tokens_of_its_answers_usage(door: RunningDoor) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    found = (await door.client.post("/tokenize", json={"messages": messages})).json()
    answer = await door.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert found["count"] == answer.json()["usage"]["prompt_tokens"]
    assert found["token_strs"] is None


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/tokenize", {}, "BAD_FIELD", "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "BAD_FIELD", "prompt"),
        ("/tokenize", {"messages": [], "add_generation_prompt": False}, "BAD_FIELD", "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "tools": TOOLS}, "BAD_FIELD", "tools"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": TOOLS}, "TOOLS_UNSUPPORTED", "tools"),
        ("/tokenize", {"prompt": "x" * 300_000}, "TEXT_TOO_LONG", "prompt"),
        ("/tokenize", {"promt": "a"}, "UNKNOWN_FIELD", "promt"),
        ("/detokenize", {}, "MISSING_FIELD", "tokens"),
        ("/detokenize", {"tokens": [-1]}, "BAD_FIELD", "tokens[0]"),
        ("/detokenize", {"tokens": [1, 70_000]}, "BAD_TOKEN", "tokens[1]"),
        ("/detokenize", {"tokens": ["a"]}, "BAD_FIELD", "tokens[0]"),
        ("/detokenize", {"tokens": [1], "model": "no-v1.0.0"}, "UNKNOWN_RELEASE", "x-tandem-release"),
        ("/detokenize", {"tokens": [1], "model": "ä"}, "BAD_FIELD", "model"),
    ],
)
async def test_bad_requests_are_refused(
    door: RunningDoor, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    response = await door.client.post(path, json=body)
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert response.status_code == (404 if code == "UNKNOWN_RELEASE" else 400)
