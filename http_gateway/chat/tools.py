"""Plan an answer that may call tools: prompt, grammar and parser."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chassis.errors import InvalidArgument
from http_gateway.chat.tool_parser import CLOSE, OPEN, ToolCallParser
from http_gateway.schemas.tools import FunctionDefinition, NamedToolChoice, Tool, ToolChoice
from tandem.v1 import gateway_pb2

_MAX_GRAMMAR_BYTES = 65536  # of the contract
# As the models write it: with a space after each colon and comma. As in other constraints, 'oneOf' is taken as 'anyOf'.
_FORM = {
    "x-guidance": {
        "whitespace_flexible": False,
        "key_separator": ": ",
        "item_separator": ", ",
        "coerce_one_of": True,
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPlan:
    """How one answer may use tools."""

    tools: Sequence[gateway_pb2.Tool] = ()  # in the prompt
    grammar: str | None = None  # of the answer. None leaves it free.
    may_call: bool = False

    def new_parser(self) -> ToolCallParser | None:
        """Return a parser, or None for an answer without calls."""
        return ToolCallParser() if self.may_call else None


def plan_tools(tools: Sequence[Tool] | None, choice: ToolChoice | None, *, parallel: bool = True) -> ToolPlan:
    """Return the plan of a request.

    With 'none', the model does not see the tools. With 'auto', the default, the model decides, and only the arguments
    of strict tools are constrained. Otherwise the answer is one call, or several if `parallel`, whose arguments fit the
    schema of their tool.

    Args:
        tools: of the request.
        choice: 'none', 'auto', 'required' or a tool by name. None means 'auto'.
        parallel: whether an answer may have several calls.

    Raises:
        InvalidArgument: reason 'BAD_TOOL' or 'BAD_TOOL_CHOICE'.
    """
    functions = [tool.function for tool in tools or ()]
    choice = choice or "auto"
    if not functions:
        if choice in ("none", "auto"):
            return ToolPlan()
        raise _bad_choice("tool_choice needs tools: send them, or leave it out.")
    if choice == "none":
        return ToolPlan()
    messages = [_as_message(function, f"tools[{index}].function") for index, function in enumerate(functions)]
    grammar: str | None = None
    if isinstance(choice, NamedToolChoice):
        named = [function for function in functions if function.name == choice.function.name]
        if not named:
            raise _bad_choice("tool_choice names a tool that is not among the tools.")
        grammar = _calls_only(named, parallel=False)
    elif choice == "required":
        grammar = _calls_only(functions, parallel=parallel)
    elif any(function.strict for function in functions) or not parallel:
        grammar = _text_or_calls(functions, parallel=parallel)
    if grammar is not None and len(grammar.encode()) > _MAX_GRAMMAR_BYTES:
        raise InvalidArgument(
            f"The schemas of all tools together have more than {_MAX_GRAMMAR_BYTES} bytes: send fewer or shorter ones.",
            reason="BAD_TOOL",
            field="tools",
        )
    return ToolPlan(tools=messages, grammar=grammar, may_call=True)


def _as_message(function: FunctionDefinition, place: str) -> gateway_pb2.Tool:
    try:
        parameters = json.dumps(function.parameters, ensure_ascii=False) if function.parameters else ""
    except ValueError:  # an integer of thousands of digits
        raise InvalidArgument(
            "The schema has a number that is too long.", reason="BAD_TOOL", field=f"{place}.parameters"
        ) from None
    return gateway_pb2.Tool(name=function.name, description=function.description or "", parameters=parameters)


def _calls_only(functions: Sequence[FunctionDefinition], *, parallel: bool) -> str:
    """Return the grammar of an answer of calls alone."""
    more = ' ("\\n" call)*' if parallel else ""
    return f"start: call{more}\ncall: {_quoted(OPEN + chr(10))} function {_quoted(chr(10) + CLOSE)}\n" + _functions(
        functions, all_strict=True
    )


def _text_or_calls(functions: Sequence[FunctionDefinition], *, parallel: bool) -> str:
    """Return the grammar of a text that calls may follow.

    `[lazy]` ends the text at the first mark of a call, so the text has none.
    """
    more = " next*" if parallel else ""
    end = _quoted("\n" + CLOSE)
    return (
        f"start: text | first function {end}{more}\n"
        f"first[lazy]: TEXT {_quoted(OPEN + chr(10))}\n"
        f"next: {_quoted(chr(10) + OPEN + chr(10))} function {end}\n"
        "text: TEXT\n"
        "TEXT: /(.|\\n)*/\n"
    ) + _functions(functions, all_strict=False)


def _functions(functions: Sequence[FunctionDefinition], *, all_strict: bool) -> str:
    """Return the rules of one call's JSON.

    The arguments have a schema of their own, because references in it start at its root.
    """
    rules = ["function: " + " | ".join(f"function_{index}" for index in range(len(functions)))]
    for index, function in enumerate(functions):
        head = _quoted(f'{{"name": "{function.name}", "arguments": ')
        schema = _arguments_schema(function, is_strict=all_strict or bool(function.strict))
        text = json.dumps(schema, ensure_ascii=False)  # escapes would make it longer
        rules.append(f'function_{index}: {head} arguments_{index} "}}"\narguments_{index}: %json {text}')
    return "\n".join(rules) + "\n"


def _arguments_schema(function: FunctionDefinition, *, is_strict: bool) -> dict[str, Any]:
    """Return the schema of a call's arguments."""
    if not is_strict:
        return {"type": "object", **_FORM}
    if not function.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False, **_FORM}
    return {**function.parameters, **_FORM}


def _quoted(text: str) -> str:
    """Return a text as a literal of the grammar."""
    return json.dumps(text)


def _bad_choice(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_TOOL_CHOICE", field="tool_choice")
