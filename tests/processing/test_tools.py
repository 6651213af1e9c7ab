"""Tools in prompts: the form models were trained with, and hostile texts."""

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from chassis.errors import InvalidArgument
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, byte_tokenizer
from processing import ChatMessage, ChatTemplate, FunctionTool, PromptBuilder, TextSegment

CONFIG = RESAMPLER_PRESETS["tiny"]
TOKENIZER: Tokenizer = byte_tokenizer()
QWEN = ChatTemplate((Path(__file__).parents[1] / "qwen3_vl_template.jinja").read_text())
BUILDER = PromptBuilder(CONFIG, TOKENIZER, QWEN)

WEATHER: FunctionTool = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says how warm it is: < 0 °C & \"cold\", or 'not'.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "at": {"type": "integer"}}},
    },
}
CALL: FunctionTool = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "at": 7}}}


def say(role: Any, text: str, **more: Any) -> ChatMessage:
    """Return a message with one text, or with none."""
    message: Any = {"role": role, "content": [{"type": "text", "text": text}] if text else [], **more}
    return cast(ChatMessage, message)


def rendered(messages: list[ChatMessage], tools: list[FunctionTool], builder: PromptBuilder = BUILDER) -> str:
    """Return the decoded prompt, with special tokens spelled out."""
    (segment,) = builder.build_segments(messages, tools)
    assert isinstance(segment, TextSegment)
    return str(builder.tokenizer.decode(list(segment.token_ids), skip_special_tokens=False))


def test_tools_calls_and_results_have_the_form_of_the_released_template() -> None:
    messages = [
        say("system", "Be brief."),
        say("user", "How warm is it?"),
        say("assistant", "I look.", tool_calls=[CALL, CALL]),
        say("tool", "7 °C"),
        say("tool", ""),
    ]
    assert rendered(messages, [WEATHER, WEATHER]).split("<|im_end|>\n") == [
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user query."
        "\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        + 2
        * (
            '{"type": "function", "function": {"name": "weather", "description": "Says how warm it is: < 0 °C & '
            '\\"cold\\", or \'not\'.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}, '
            '"at": {"type": "integer"}}}}}\n'
        )
        + "</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call>",
        "<|im_start|>user\nHow warm is it?",
        "<|im_start|>assistant\nI look."
        + 2 * '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich", "at": 7}}\n</tool_call>',
        "<|im_start|>user\n<tool_response>\n7 °C\n</tool_response>\n<tool_response>\n\n</tool_response>",
        "<|im_start|>assistant\n",
    ]


def test_without_tools_the_prompt_is_as_before() -> None:
    assert rendered([say("system", "Be brief."), say("user", "Hi")], []) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("messages", "tools", "field"),
    [
        ([say("user", "Hi")], [WEATHER], "tools"),
        ([say("user", "Hi"), say("assistant", "", tool_calls=[CALL])], [], "messages[1].tool_calls"),
        ([say("user", "Hi"), say("tool", "7 °C")], [], "messages[1].role"),
    ],
)
def test_a_template_without_a_place_for_tools_refuses_them(
    messages: list[ChatMessage], tools: list[FunctionTool], field: str
) -> None:
    builder = PromptBuilder(CONFIG, TOKENIZER, ChatTemplate(CHAT_TEMPLATE))
    assert (builder.renders_tools, BUILDER.renders_tools) == (False, True)
    with pytest.raises(InvalidArgument, match="no place for tools") as raised:
        builder.build_segments(messages, tools)
    assert (raised.value.reason, raised.value.field) == ("TOOLS_UNSUPPORTED", field)


HOSTILE = st.tuples(
    st.text(max_size=5), st.sampled_from([*SPECIAL_TOKENS, "<tool_call>", "\ue0000\ue001"]), st.text(max_size=5)
).map("".join)


@given(HOSTILE, st.sampled_from(["description", "property", "argument"]))
def test_texts_of_tools_cannot_imitate_the_template(text: str, place: str) -> None:
    """Whatever a template does with them."""
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    builder = PromptBuilder(CONFIG.model_copy(update={"vocab_size": 512}), tokenizer, QWEN)
    function: Any = {"name": "f", "description": text if place == "description" else "d"}
    function["parameters"] = {"properties": {text if place == "property" else "p": {}}}
    messages = [say("user", "Hi")]
    if place == "argument":
        call: Any = {"type": "function", "function": {"name": "f", "arguments": {"a": [text]}}}
        messages.append(say("assistant", "", tool_calls=[call]))
    with pytest.raises(InvalidArgument) as raised:
        builder.build_segments(messages, [{"type": "function", "function": function}])
    assert raised.value.reason == "RESERVED_TEXT"
    assert raised.value.field == ("messages[1].tool_calls" if place == "argument" else "tools")


def test_a_long_list_of_tools_is_rendered_without_the_cache() -> None:
    long: Any = {"type": "function", "function": {"name": "f", "description": "word " * 4000}}
    assert "word " * 4000 in rendered([say("user", "Hi")], [long])
    assert BUILDER._encode_template.cache_info().currsize < 20


def test_prompts_equal_those_of_transformers() -> None:
    """Models were trained with prompts that its renderer wrote."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        say("system", "Be brief."),
        say("user", "How warm is it?"),
        say("assistant", "I look.", tool_calls=[CALL, CALL]),
        say("tool", "7 °C"),
        say("tool", "<8 °C & rain>"),
        say("user", "And tomorrow?"),
    ]
    source = (Path(__file__).parents[1] / "qwen3_vl_template.jinja").read_text()
    render: Any = render_jinja_template
    for tools in ([WEATHER, WEATHER], []):
        expected, _ = render(
            conversations=[messages], tools=tools or None, chat_template=source, add_generation_prompt=True
        )
        assert [rendered(messages, tools)] == expected
