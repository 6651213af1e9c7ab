"""Check tools and their calls, and bring them into the template's form."""

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from chassis.errors import InvalidArgument
from processing import Function, FunctionTool
from tandem.v1 import gateway_pb2

# Fixed by the contract.
MAX_TOOLS = 128
MAX_TOOL_BYTES = 65536  # of the schema of one tool, and of the arguments of one call

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read_tools(tools: Sequence[gateway_pb2.Tool]) -> list[FunctionTool]:
    """Return the tools of a request.

    Raises:
        InvalidArgument: reason 'BAD_TOOL'.
    """
    if len(tools) > MAX_TOOLS:
        raise InvalidArgument(
            f"There are {len(tools)} tools: send at most {MAX_TOOLS}.", reason="BAD_TOOL", field="tools"
        )
    read: dict[str, FunctionTool] = {}
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        _check_name(tool.name, "BAD_TOOL", place)
        if tool.name in read:
            raise InvalidArgument(
                "Two tools have the same name: give each another.", reason="BAD_TOOL", field=f"{place}.name"
            )
        parameters = _read_object(tool.parameters or "{}", "BAD_TOOL", f"{place}.parameters")
        function: Function = {"name": tool.name}  # in the order in which templates write it
        if tool.description:
            function["description"] = tool.description
        function["parameters"] = parameters or {"type": "object", "properties": {}}
        read[tool.name] = {"type": "function", "function": function}
    return list(read.values())


def read_tool_calls(message: gateway_pb2.Message, place: str) -> list[FunctionTool]:
    """Return the calls of a message.

    Raises:
        InvalidArgument: reason 'BAD_TOOL_CALL'.
    """
    calls = message.tool_calls
    if calls and (message.role != gateway_pb2.ROLE_ASSISTANT or len(calls) > MAX_TOOLS):
        raise InvalidArgument(
            f"Only a message of the assistant may call tools, at most {MAX_TOOLS} times.",
            reason="BAD_TOOL_CALL",
            field=f"{place}.tool_calls",
        )
    read: list[FunctionTool] = []
    for index, call in enumerate(calls):
        at = f"{place}.tool_calls[{index}]"
        _check_name(call.name, "BAD_TOOL_CALL", at)
        arguments = _read_object(call.arguments, "BAD_TOOL_CALL", f"{at}.arguments")
        read.append({"type": "function", "function": {"name": call.name, "arguments": arguments}})
    return read


def _check_name(name: str, reason: str, place: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            "The name of a tool has 1 to 64 letters, digits, '_' and '-'.", reason=reason, field=f"{place}.name"
        )


def _read_object(text: str, reason: str, place: str) -> dict[str, Any]:
    """Return the object of a JSON text."""
    try:
        if len(text.encode()) > MAX_TOOL_BYTES:
            raise ValueError("too long")
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # an escape can stand for half a character
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidArgument(
            f"This must be a JSON object of at most {MAX_TOOL_BYTES} bytes.", reason=reason, field=place
        )
    return value


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinities, which are no JSON."""
    raise ValueError(name)
