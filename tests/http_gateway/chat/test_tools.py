"""Grammars of calls, followed by the compiler of the language service."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from chassis.errors import InvalidArgument
from checkpoint.tokenizer import byte_tokenizer
from http_gateway.chat.tools import plan_tools
from http_gateway.schemas.tools import NamedToolChoice, Tool, ToolChoice
from language_service.sampling.grammar import GrammarCompiler, advance, wait_for_masks
from language_service.sampling.options import Constraint

TOKENIZER: Tokenizer = byte_tokenizer()
VOCABULARY = LLTokenizer(TOKENIZER.to_str(), eos_token=[2])

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
# A tree: its schema refers to its own root.
TREE = {
    "type": "object",
    "properties": {"left": {"$ref": "#"}, "leaf": {"$ref": "#/$defs/leaf"}},
    "$defs": {"leaf": {"enum": [1, 2]}},
    "additionalProperties": False,
}


def tool(name: str, parameters: dict[str, Any] | None = None, *, strict: bool | None = None) -> Tool:
    function = {"name": name, "description": "d", "parameters": parameters, "strict": strict}
    return Tool.model_validate({"type": "function", "function": function})


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def choose(name: str) -> ToolChoice:
    return NamedToolChoice.model_validate({"type": "function", "function": {"name": name}})


OSLO, NOW = call("weather", '{"city": "Oslo"}'), call("now", "{}")
WEATHER, CLOCK = tool("weather", CITY), tool("now")


def fits(grammar: str, text: str) -> bool:
    """Return whether the tokens of an answer fit."""
    matcher = LLMatcher(VOCABULARY, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return bool(matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        (OSLO, True),
        (NOW, True),
        (f"{OSLO}\n{NOW}\n{OSLO}", True),
        (call("weather", '{"city": "</tool_call>"}'), True),
        ("It is warm.", False),
        (f"I look. {OSLO}", False),
        (call("weather", "{}"), False),
        (call("weather", '{"city": 7}'), False),
        (call("wetter", '{"city": "Oslo"}'), False),
        (call("now", '{"city": "Oslo"}'), False),
        (call("weather", '{"city":"Oslo"}'), False),  # models write a space there
        (f"{OSLO}{NOW}", False),
        (OSLO.removesuffix("</tool_call>"), False),
    ],
)
def test_a_required_call_has_the_form_and_fits_its_schema(answer: str, is_right: bool) -> None:
    plan = plan_tools([WEATHER, CLOCK], "required")
    assert plan.grammar is not None
    assert fits(plan.grammar, answer) is is_right


def test_without_parallel_calls_there_is_one() -> None:
    plan = plan_tools([WEATHER, CLOCK], "required", parallel=False)
    assert plan.grammar is not None
    assert [fits(plan.grammar, answer) for answer in (OSLO, f"{OSLO}\n{NOW}")] == [True, False]
    auto = plan_tools([WEATHER, CLOCK], None, parallel=False)
    assert auto.grammar is not None
    assert [fits(auto.grammar, answer) for answer in ("Hi", OSLO, f"{OSLO}\n{NOW}")] == [True, True, False]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("It is warm.", True),
        ("", True),
        ("1 < 2, <tool> and <tool_", True),
        (OSLO, True),
        (f"I look.\n{OSLO}\n{NOW}", True),
        (call("now", '{"anything": [1]}'), True),  # not strict
        (call("weather", '{"city": 7}'), False),
        (f"I look.\n{call('weather', '{}')}", False),
        (f"{OSLO} and more", False),
    ],
)
def test_a_strict_tool_leaves_the_text_free_but_not_its_arguments(answer: str, is_right: bool) -> None:
    plan = plan_tools([tool("weather", CITY, strict=True), CLOCK], "auto")
    assert plan.grammar is not None
    assert fits(plan.grammar, answer) is is_right


def test_a_tool_by_name_is_called_once() -> None:
    plan = plan_tools([WEATHER, CLOCK], choose("now"))
    assert plan.grammar is not None
    assert [fits(plan.grammar, answer) for answer in (NOW, OSLO, f"{NOW}\n{NOW}")] == [True, False, False]
    assert len(plan.tools) == 2  # the model sees all


def test_references_in_a_schema_stay_in_it() -> None:
    plan = plan_tools([tool("tree", TREE)], "required")
    assert plan.grammar is not None
    assert fits(plan.grammar, call("tree", '{"left": {"left": {}, "leaf": 1}, "leaf": 2}'))
    assert not fits(plan.grammar, call("tree", '{"left": {"name": "tree"}}'))


def test_the_size_of_a_schema_is_counted_in_utf8() -> None:
    places = ["城市" * 60 + str(number) for number in range(160)]
    schema = {**CITY, "properties": {"city": {"enum": places}}}
    assert len(json.dumps(schema, ensure_ascii=False).encode()) < 62_000 < 65_536 < len(json.dumps(schema))
    plan = plan_tools([tool("weather", schema)], "required")
    assert plan.grammar is not None
    assert fits(plan.grammar, call("weather", json.dumps({"city": places[7]}, ensure_ascii=False)))


def test_one_of_is_taken_as_any_of() -> None:
    either = {"oneOf": [{"type": "integer"}, {"type": "number"}]}  # 7 fits both
    plan = plan_tools([tool("weather", {**CITY, "properties": {"city": either}})], "required")
    assert plan.grammar is not None
    assert fits(plan.grammar, call("weather", '{"city": 7}'))


def test_free_tools_are_shown_without_a_grammar() -> None:
    plan = plan_tools([WEATHER, CLOCK], None)
    assert (plan.grammar, plan.may_call) == (None, True)
    assert [(one.name, one.description) for one in plan.tools] == [("weather", "d"), ("now", "d")]
    assert [one.parameters for one in plan.tools] == [json.dumps(CITY), ""]
    assert plan.new_parser() is not None


def test_none_hides_the_tools() -> None:
    cases: list[tuple[list[Tool] | None, ToolChoice | None]] = [([WEATHER], "none"), ([], "auto"), (None, None)]
    for tools, choice in cases:
        plan = plan_tools(tools, choice)
        assert (list(plan.tools), plan.grammar, plan.new_parser()) == ([], None, None)


def test_a_choice_without_its_tool_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="needs tools"):
        plan_tools([], "required")
    with pytest.raises(InvalidArgument) as raised:
        plan_tools([CLOCK], choose("weather"))
    assert (raised.value.reason, raised.value.field) == ("BAD_TOOL_CHOICE", "tool_choice")


def test_schemas_that_are_too_long_together_are_refused() -> None:
    long = {"type": "object", "properties": {"a": {"enum": ["x" * 40_000]}}}
    assert plan_tools([tool("a", long), tool("b", long)], "auto").grammar is None
    with pytest.raises(InvalidArgument, match="together"):
        plan_tools([tool("a", long), tool("b", long)], "required")


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_the_marks_of_a_call_may_be_tokens_of_their_own(choice: ToolChoice) -> None:
    """As released tokenizers have them, beside their spelling in letters."""
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in ("<tool_call>", "</tool_call>")]
    )
    size = tokenizer.get_vocab_size()
    plan = plan_tools([tool("weather", CITY, strict=True)], choice)
    assert plan.grammar is not None
    compiler = GrammarCompiler(tokenizer.to_str(), vocab_size=size, eos_token_ids=[2])
    try:
        grammar = await compiler.compile(Constraint("grammar", plan.grammar))
        for token_id in [*tokenizer.encode(f"{OSLO}\n{OSLO}", add_special_tokens=False).ids, 2]:
            wait_for_masks([grammar], timeout_s=20)
            assert grammar.mask(size)[token_id], tokenizer.id_to_token(token_id)
            grammar.accept(token_id)
            advance([grammar], timeout_s=20)
        assert grammar.error is None
    finally:
        compiler.close()
