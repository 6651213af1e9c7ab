"""Each error of tools and calls has its reason and field."""

import json

import pytest

from chassis.errors import InvalidArgument
from gateway.answer.checks import Limits, check_conversation
from tandem.v1.gateway_pb2 import ROLE_ASSISTANT, ROLE_TOOL, ROLE_USER, Message, Part, Tool, ToolCall

LIMITS = Limits(max_images=2, max_text_characters=200_000, max_stop_strings=16)
QUESTION = Message(role=ROLE_USER, parts=[Part(text="How warm is it?")])
CALL = ToolCall(name="weather", arguments='{"city": "Oslo"}')
CALLING = Message(role=ROLE_ASSISTANT, tool_calls=[CALL])
RESULT = Message(role=ROLE_TOOL, parts=[Part(text="7")])
WEATHER = Tool(name="weather", description="Says how warm it is.", parameters='{"type": "object"}')
TOO_LONG = json.dumps({"a": "x" * 65536})

BAD = {
    "too many tools": ([QUESTION], [Tool(name=f"tool{n}") for n in range(129)], "BAD_TOOL", "tools"),
    "no name": ([QUESTION], [Tool()], "BAD_TOOL", "tools[0].name"),
    "a name with a space": ([QUESTION], [WEATHER, Tool(name="a b")], "BAD_TOOL", "tools[1].name"),
    "a name twice": ([QUESTION], [WEATHER, WEATHER], "BAD_TOOL", "tools[1].name"),
    "no JSON": ([QUESTION], [Tool(name="a", parameters="{")], "BAD_TOOL", "tools[0].parameters"),
    "no object": ([QUESTION], [Tool(name="a", parameters="[]")], "BAD_TOOL", "tools[0].parameters"),
    "no number": ([QUESTION], [Tool(name="a", parameters='{"a": NaN}')], "BAD_TOOL", "tools[0].parameters"),
    "half a character": (
        [QUESTION],
        [Tool(name="a", parameters=r'{"a": "\ud800"}')],
        "BAD_TOOL",
        "tools[0].parameters",
    ),
    "too deep": ([QUESTION], [Tool(name="a", parameters='{"a":' * 10_000)], "BAD_TOOL", "tools[0].parameters"),
    "too long": ([QUESTION], [Tool(name="a", parameters=TOO_LONG)], "BAD_TOOL", "tools[0].parameters"),
    "arguments are no object": (
        [QUESTION, Message(role=ROLE_ASSISTANT, tool_calls=[CALL, ToolCall(name="a", arguments="7")]), RESULT],
        [],
        "BAD_TOOL_CALL",
        "messages[1].tool_calls[1].arguments",
    ),
    "a user calls a tool": (
        [Message(role=ROLE_USER, parts=[Part(text="?")], tool_calls=[CALL])],
        [],
        "BAD_TOOL_CALL",
        "messages[0].tool_calls",
    ),
    "a result of no call": ([QUESTION, RESULT], [], "BAD_TOOL_RESULT", "messages[1].role"),
    "a call is last": ([QUESTION, CALLING], [], "LAST_NOT_USER", "messages[1].role"),
}


@pytest.mark.parametrize(("messages", "tools", "reason", "field"), list(BAD.values()), ids=list(BAD))
def test_bad_tools_are_refused_at_their_field(
    messages: list[Message], tools: list[Tool], reason: str, field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_conversation(messages, LIMITS, tools)
    assert (raised.value.reason, raised.value.field) == (reason, field)


def test_texts_of_tools_count_as_text() -> None:
    limits = Limits(max_images=0, max_text_characters=len("How warm is it?") + 40, max_stop_strings=0)
    fits = Tool(name="a", description="d" * 20, parameters='{"a": "12345678901"}')
    check_conversation([QUESTION], limits, [fits])
    fits.description += "d"
    with pytest.raises(InvalidArgument) as raised:
        check_conversation([QUESTION], limits, [fits])
    assert raised.value.reason == "TEXT_TOO_LONG"


def test_tools_and_calls_get_the_form_of_templates() -> None:
    """A call needs no text, a result may be empty."""
    empty = Message(role=ROLE_TOOL)
    conversation = check_conversation([QUESTION, CALLING, RESULT, empty], LIMITS, [WEATHER, Tool(name="now")])
    assert conversation.tools == [
        {
            "type": "function",
            "function": {"name": "weather", "description": WEATHER.description, "parameters": {"type": "object"}},
        },
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    ]
    assert conversation.messages[1:] == [
        {
            "role": "assistant",
            "content": [],
            "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": [{"type": "text", "text": "7"}]},
        {"role": "tool", "content": []},
    ]
