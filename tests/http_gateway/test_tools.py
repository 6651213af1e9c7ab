"""Tools and calls on their way to a scripted gateway, and back."""

import json
from typing import Any

import pytest

from chassis.errors import InvalidArgument
from tandem.v1 import gateway_pb2
from tests.http_gateway.conftest import OpenDoor
from tests.http_gateway.scripted import Script

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "weather", "description": "Says how warm it is.", "parameters": {"type": "object"}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


async def test_calls_become_tool_calls_in_answers_and_streams(open_door: OpenDoor) -> None:
    answer = f"I look.\n{CALL}\n{CALL}"
    script = Script(texts=[answer[start : start + 7] for start in range(0, len(answer), 7)])
    door = await open_door(script.handlers)
    (choice,) = (await door.chat(tools=[WEATHER])).json()["choices"]
    message = choice["message"]
    assert (message["content"], choice["finish_reason"]) == ("I look.", "tool_calls")
    assert [call["function"] for call in message["tool_calls"]] == 2 * [
        {"name": "weather", "arguments": '{"city": "Oslo"}'}
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2

    events = await door.events(tools=[WEATHER])
    deltas = [chunk["choices"][0]["delta"] for chunk in events.chunks]
    pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
    assert events.text() == "I look."
    for index in (0, 1):
        own = [piece for piece in pieces if piece["index"] == index]
        assert own[0]["function"]["name"] == "weather"
        assert own[0]["type"] == "function"
        assert not any("id" in piece or "name" in piece["function"] for piece in own[1:])
        assert "".join(piece["function"]["arguments"] for piece in own) == '{"city": "Oslo"}'
    assert events.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_without_tools_a_call_is_text(open_door: OpenDoor) -> None:
    door = await open_door(Script(texts=[CALL]).handlers)
    cases: list[dict[str, Any]] = [{}, {"tools": [WEATHER], "tool_choice": "none"}]
    for fields in cases:
        (choice,) = (await door.chat(**fields)).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert "tool_calls" not in choice["message"]


async def test_tools_and_results_reach_the_gateway_in_its_form(open_door: OpenDoor) -> None:
    script = Script()
    door = await open_door(script.handlers)
    calls = [
        {"id": city, "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": city})}}
        for city in ("Oslo", "Rome")
    ]
    messages = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "Rome", "content": "30"},
        {"role": "tool", "tool_call_id": "Oslo", "content": [{"type": "text", "text": "7"}]},
        {"role": "user", "content": "And tomorrow?"},
    ]
    response = await door.client.post(
        "/v1/chat/completions", json={"messages": messages, "tools": [WEATHER], "tool_choice": "required"}
    )
    assert response.status_code == 200, response.text
    (request,) = script.requests
    assert [(tool.name, tool.parameters) for tool in request.tools] == [("weather", '{"type": "object"}')]
    assert request.sampling.WhichOneof("constraint") == "grammar"
    assert [message.role for message in request.messages] == [
        gateway_pb2.ROLE_USER,
        gateway_pb2.ROLE_ASSISTANT,
        gateway_pb2.ROLE_TOOL,
        gateway_pb2.ROLE_TOOL,
        gateway_pb2.ROLE_USER,
    ]
    assert [call.arguments for call in request.messages[1].tool_calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert [message.parts[0].text for message in request.messages[2:4]] == ["7", "30"]  # as the calls


@pytest.mark.parametrize("stream", [False, True])
async def test_the_gateways_refusal_of_tools_is_a_clear_400(open_door: OpenDoor, stream: bool) -> None:
    error = InvalidArgument("There is no place for tools.", reason="TOOLS_UNSUPPORTED", field="tools")
    door = await open_door(Script(texts=(), error=error).handlers)
    response = await door.chat(tools=[WEATHER], stream=stream)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "TOOLS_UNSUPPORTED"
    assert response.json()["error"]["param"] == "tools"


async def test_turns_that_were_produced_may_be_empty(open_door: OpenDoor) -> None:
    script = Script()
    door = await open_door(script.handlers)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}, {"role": "assistant"}]
    messages.append({"role": "user", "content": "Go on."})
    response = await door.client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200, response.text
    assert [len(message.parts) for message in script.requests[0].messages] == [1, 0, 0, 1]


async def test_an_answer_continues_the_last_message_if_asked_to(open_door: OpenDoor) -> None:
    script = Script()
    door = await open_door(script.handlers)
    for fields in ({}, {"continue_final_message": True}):
        await door.chat("Hi", **fields)
    assert [request.continue_answer for request in script.requests] == [False, True]
