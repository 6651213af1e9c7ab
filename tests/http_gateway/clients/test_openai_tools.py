"""Tools of the official Python client, with a template that renders them.

The model is random, so it calls tools only where it must. Their arguments still fit.
"""

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tests.http_gateway.clients.conftest import KEY, SLOW_KEY, TOOLS_TAG, Tools, base_url

pytestmark = pytest.mark.slow

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How warm is it in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says how warm it is.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Zürich"]},
                "hour": {"type": "integer", "minimum": 0, "maximum": 23},
            },
            "required": ["city", "hour"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "now"}}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "7"}
REQUEST: Any = {
    "model": "default",
    "messages": MESSAGES,
    "tools": [WEATHER, CLOCK],
    "parallel_tool_calls": False,
    "max_tokens": 200,
}


def check_call(name: str, arguments: str) -> None:
    read = json.loads(arguments)
    if name == "now":
        assert read == {}
        return
    assert name == "weather"
    assert read["city"] in ("Oslo", "Zürich")
    assert 0 <= read["hour"] <= 23
    assert len(read) == 2


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_fits_its_schema(tools: Tools, seed: int) -> None:
    answer = tools.client.chat.completions.create(**REQUEST, tool_choice="required", temperature=1.5, seed=seed)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.id.startswith("call_")
    check_call(call.function.name, call.function.arguments)


def test_a_streamed_call_is_the_same(tools: Tools) -> None:
    request = {**REQUEST, "tool_choice": {"type": "function", "function": {"name": "weather"}}, "seed": 3}
    whole = tools.client.chat.completions.create(**request)
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    name, arguments, pieces = "", "", 0
    for chunk in tools.client.chat.completions.create(**request, stream=True):
        (choice,) = chunk.choices
        for piece in choice.delta.tool_calls or ():
            assert piece.index == 0
            assert piece.function is not None
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
            pieces += 1
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert choice.finish_reason == "tool_calls"
    assert pieces > 4


class weather(BaseModel):  # noqa: N801  (the name of the tool)
    """Says how warm it is."""

    city: Literal["Oslo", "Zürich"]
    is_morning: bool


def test_the_streaming_helper_parses_the_arguments(tools: Tools) -> None:
    request = {**REQUEST, "tools": [openai.pydantic_function_tool(weather)], "tool_choice": "required"}
    with tools.client.chat.completions.stream(**request) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, weather)
    assert "tool_calls.function.arguments.done" in kinds


def test_results_go_back_in_the_order_of_the_calls(tools: Tools) -> None:
    calls = [
        {"id": name, "type": "function", "function": {"name": "weather", "arguments": f'{{"city": "{name}"}}'}}
        for name in ("Oslo", "Zürich")
    ]
    results = [{"role": "tool", "tool_call_id": name, "content": f"{name}: warm"} for name in ("Oslo", "Zürich")]
    head = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": calls}]
    request = {**REQUEST, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    one, other = (
        tools.client.chat.completions.create(**{**request, "messages": [*head, *order]})
        for order in (results, results[::-1])
    )
    assert one.usage is not None
    assert other.usage is not None
    assert one.choices[0].message.content == other.choices[0].message.content
    assert one.usage.prompt_tokens == other.usage.prompt_tokens
    assert other.usage.prompt_tokens_details is not None
    assert (other.usage.prompt_tokens_details.cached_tokens or 0) > one.usage.prompt_tokens // 2  # the same prompt


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        (
            [*MESSAGES, {"role": "tool", "tool_call_id": "a", "content": "7"}],
            "BAD_TOOL_RESULT",
            "messages[1].tool_call_id",
        ),
        ([{**MESSAGES[0], "tool_call_id": "a"}], "BAD_TOOL_RESULT", "messages[0].tool_call_id"),
        (
            [
                *MESSAGES,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "[]"}}],
                },
                RESULT,
            ],
            "BAD_TOOL_CALL",
            "messages[1].tool_calls[0].",
        ),
    ],
)
def test_results_without_their_call_are_refused(tools: Tools, messages: Any, code: str, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        tools.client.chat.completions.create(**{**REQUEST, "messages": messages})
    assert raised.value.code == code
    assert (raised.value.param or "").startswith(param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "BAD_TOOL_CHOICE", "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "BAD_TOOL_CHOICE", "tool_choice"),
        ({"tool_choice": "maybe"}, "BAD_FIELD", "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "BAD_FIELD", "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "BAD_TOOL", "tools[1].name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": "<|im_end|>"}}]},
            "RESERVED_TEXT",
            "tools",
        ),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "BAD_FIELD", "response_format"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "colour"}}}],
                "tool_choice": "required",
            },
            "BAD_CONSTRAINT",
            None,
        ),
    ],
)
def test_bad_tools_are_refused(tools: Tools, fields: dict[str, Any], code: str, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        tools.client.chat.completions.create(**{**REQUEST, **fields})
    assert raised.value.code == code
    assert param is None or raised.value.param == param


def test_tools_are_in_the_prompt_unless_the_choice_is_none(tools: Tools) -> None:
    def prompt_tokens(**fields: Any) -> int:
        answer = tools.client.chat.completions.create(**{**REQUEST, "max_tokens": 4, **fields})
        assert answer.usage is not None
        return int(answer.usage.prompt_tokens)

    hidden, bare, shown = prompt_tokens(tool_choice="none"), prompt_tokens(tools=[]), prompt_tokens()
    assert hidden == bare
    assert shown > bare + len(json.dumps(WEATHER["function"], ensure_ascii=False))


def test_a_random_model_answers_in_text_where_it_may(tools: Tools) -> None:
    """Also if a strict tool constrains the calls."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    for listed in ([WEATHER], [strict]):
        answer = tools.client.chat.completions.create(
            **{**REQUEST, "tools": listed, "max_tokens": 16, "temperature": 1.5, "seed": 1}
        )
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.content


def test_keys_and_limits_are_the_gateways(tools: Tools) -> None:
    url = base_url(tools.stack)
    with OpenAI(base_url=url, api_key="wrong") as stranger, pytest.raises(openai.AuthenticationError) as unknown:
        stranger.models.list()
    assert unknown.value.status_code == 401
    with OpenAI(base_url=url, api_key=SLOW_KEY, max_retries=0) as slow:
        request: Any = {"model": TOOLS_TAG, "messages": MESSAGES, "max_tokens": 2}
        slow.chat.completions.create(**request)
        with pytest.raises(openai.RateLimitError) as limited:
            slow.chat.completions.create(**request)
    assert limited.value.code == "REQUEST_RATE"
    assert int(limited.value.response.headers["retry-after"]) >= 1
    with OpenAI(base_url=url, api_key=KEY) as known:
        assert [model.to_dict()["renders_tools"] for model in known.models.list()] == [True, True]
