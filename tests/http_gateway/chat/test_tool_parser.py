"""Calls in answers, however their text is cut into pieces."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_gateway.chat.tool_parser import CallPiece, TextPiece, ToolCallParser


@dataclass
class Read:
    """All pieces of an answer, put together again."""

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # name and arguments


def read(pieces: list[str]) -> Read:
    parser, result, ids = ToolCallParser(), Read(), set()
    for piece in [one for text in pieces for one in parser.push(text)] + parser.finish():
        match piece:
            case TextPiece(text):
                assert text
                result.text += text
            case CallPiece(index, arguments, str(call_id), str(name)):
                assert index == len(result.calls)
                ids.add(call_id)
                result.calls.append((name, arguments))
            case CallPiece(index, arguments, None, None):
                assert index == len(result.calls) - 1
                result.calls[index] = (result.calls[index][0], result.calls[index][1] + arguments)
    assert len(ids) == len(result.calls) == parser.num_calls
    return result


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b-_9"]), st.dictionaries(st.text(), st.text())), max_size=3), st.data()
)
def test_calls_are_found_wherever_the_answer_is_cut(
    calls: list[tuple[str, dict[str, str]]], data: st.DataObject
) -> None:
    """Also if their arguments spell the end of a call."""
    for _, arguments in calls:
        if arguments:
            arguments[next(iter(arguments))] = '</tool_call>"}\\'
    written = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    answer = "\n".join(["I look.", *(call(*one) for one in written)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(pieces) == Read("I look.", written)


@given(st.text(st.sampled_from("<tool_call>/ \n{x"), max_size=40), st.data())
def test_text_without_a_call_stays_as_it_is(answer: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(answer)))
    assert read([answer[:cut], answer[cut:]]) == Read(answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (f"{call('a', '{}')}\n{call('b', '{}')}\n", Read("", [("a", "{}"), ("b", "{}")])),
        (f"Before.\n\n{call('a', '{}')}\nAfter.", Read("Before.\nAfter.", [("a", "{}")])),
        # The other order, and no arguments at all.
        ('<tool_call>{"arguments": {"x": 1}, "name": "a"}</tool_call>', Read("", [("a", '{"x": 1}')])),
        ('<tool_call>{"name": "a"}</tool_call>', Read("", [("a", "{}")])),
        # No calls of this form.
        ("<tool_call>a()</tool_call>", Read("<tool_call>a()</tool_call>")),
        ('<tool_call>["a"]</tool_call>', Read('<tool_call>["a"]</tool_call>')),
        ('<tool_call>{"name": "a b"}</tool_call>', Read('<tool_call>{"name": "a b"}</tool_call>')),
        (
            '<tool_call>{"name": "a", "arguments": 7}</tool_call>',
            Read('<tool_call>{"name": "a", "arguments": 7}</tool_call>'),
        ),
        # Cut short by the limit of tokens.
        ('Hm.\n<tool_call>\n{"name": "a", "argu', Read('Hm.\n<tool_call>\n{"name": "a", "argu')),
        ('<tool_call>\n{"name": "a", "arguments": {"x": "y', Read("", [("a", '{"x": "y')])),
        ('<tool_call>\n{"name": "a", "arguments": {"x": 1}', Read("", [("a", '{"x": 1}')])),
        (f"{call('a', '{}')}\n<tool_call>", Read("", [("a", "{}")])),
    ],
)
def test_answers_are_read_as_expected(answer: str, expected: Read) -> None:
    assert read([answer]) == expected
    assert read(list(answer)) == expected


def test_arguments_are_passed_on_as_they_arrive() -> None:
    parser = ToolCallParser()
    assert parser.push('<tool_call>\n{"name": "a", "argu') == []
    (first, second) = parser.push('ments": {"x"')
    assert isinstance(first, CallPiece)
    assert (first.index, first.name, first.arguments) == (0, "a", "")
    assert second == CallPiece(0, '{"x"')
    assert parser.push(': "}') == [CallPiece(0, ': "}')]
    assert parser.push('"}}\n</tool_') == [CallPiece(0, '"}')]
    assert parser.push("call>") == parser.finish() == []


def test_text_is_passed_on_as_it_arrives() -> None:
    parser = ToolCallParser()
    assert parser.push("Is 1 <") == [TextPiece("Is 1")]
    assert parser.push(" 2?") == [TextPiece(" < 2?")]
    assert parser.push("\n") == []  # would be dropped before a call
    assert parser.finish() == [TextPiece("\n")]
