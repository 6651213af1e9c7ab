"""Segments of prompts, hostile message text and invalid templates."""

import hashlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.manifest import read_manifest, write_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, byte_tokenizer
from processing.chat_template import ChatMessage, ChatTemplate
from processing.prompt import ImageSlot, PromptBuilder, TextSegment, open_prompt_builder

CONFIG = RESAMPLER_PRESETS["tiny"]
TOKENIZER = byte_tokenizer()
BUILDER = PromptBuilder(CONFIG, TOKENIZER, ChatTemplate(CHAT_TEMPLATE))
IMAGE_MARKS = "<|vision_start|><|vision_end|>"  # the image token between them became an ImageSlot


def user(*parts: str | None) -> ChatMessage:
    """Return a user's message. None is an image."""
    return {
        "role": "user",
        "content": [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts],
    }


def text_ids(builder: PromptBuilder, messages: list[ChatMessage]) -> list[int]:
    """Return the concatenated ids of all text segments."""
    segments = builder.build_segments(messages)
    return [token_id for one in segments if isinstance(one, TextSegment) for token_id in one.token_ids]


def decoded(builder: PromptBuilder, messages: list[ChatMessage]) -> str:
    """Return the decoded text segments, with special tokens spelled out."""
    return str(builder.tokenizer.decode(text_ids(builder, messages), skip_special_tokens=False))


def test_a_conversation_becomes_chatml_with_a_slot_for_each_image() -> None:
    messages: list[ChatMessage] = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        user("Look: ", None, "What is it?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]},
        user(None, "这个呢？"),
    ]
    segments = BUILDER.build_segments(messages)
    assert [segment for segment in segments if isinstance(segment, ImageSlot)] == [ImageSlot(0), ImageSlot(1)]
    assert [type(segment) for segment in segments] == [TextSegment, ImageSlot, TextSegment, ImageSlot, TextSegment]
    assert decoded(BUILDER, messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nLook: {IMAGE_MARKS}What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cup.<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE_MARKS}这个呢？<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert BUILDER.count_tokens(segments, [32, 7]) == len(text_ids(BUILDER, messages)) + 39


@pytest.mark.parametrize("begun", ["A red", "", "<|im_end|>"])
def test_an_answer_that_has_begun_is_continued_within_its_message(begun: str) -> None:
    messages: list[ChatMessage] = [
        user(None, "What is it?"),
        {"role": "assistant", "content": [{"type": "text", "text": begun}]},
    ]
    segments = BUILDER.build_segments(messages, continues_last=True)
    ids = [token_id for one in segments if isinstance(one, TextSegment) for token_id in one.token_ids]
    assert BUILDER.tokenizer.decode(ids, skip_special_tokens=False) == (
        f"<|im_start|>user\n{IMAGE_MARKS}What is it?<|im_end|>\n<|im_start|>assistant\n{begun}"
    )
    assert begun or segments == BUILDER.build_segments(messages[:1])


def test_a_template_that_ends_with_another_message_cannot_continue_one() -> None:
    template = "{% for m in messages | reverse %}{{ m.content[0].text }}{% endfor %}"
    builder = PromptBuilder(CONFIG, TOKENIZER, ChatTemplate(template))
    with pytest.raises(FailedPrecondition, match="output the last message last"):
        builder.build_segments([user("a"), user("b")], continues_last=True)


HOSTILE = st.lists(
    st.one_of(st.sampled_from([*SPECIAL_TOKENS, "\ue0000\ue001", "{{ 7 * 7 }}", "{% raw %}", "<|", "|>"]), st.text()),
    max_size=6,
).map("".join)


@given(HOSTILE)
def test_message_text_never_becomes_a_special_token(text: str) -> None:
    """Otherwise users could forge messages and image slots."""
    ids = text_ids(BUILDER, [user(text)])
    specials = [TOKENIZER.id_to_token(token_id) for token_id in ids if token_id < len(SPECIAL_TOKENS)]
    assert len(BUILDER.build_segments([user(text)])) == 1
    assert specials == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert decoded(BUILDER, [user(text)]) == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def test_only_templates_can_write_added_tokens_that_are_not_special() -> None:
    """Released tokenizers have such tokens for tool calls and thinking."""
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    builder = PromptBuilder(CONFIG, tokenizer, ChatTemplate("<tool_call>{{ messages[0].content[0].text }}"))
    ids = text_ids(builder, [user("<tool_call>")])
    assert [tokenizer.id_to_token(token_id) for token_id in ids].count("<tool_call>") == 1
    assert len(ids) == 1 + len("<tool_call>")


def test_truncation_and_padding_of_the_tokenizer_file_are_ignored() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    builder = PromptBuilder(CONFIG, tokenizer, ChatTemplate(CHAT_TEMPLATE))
    assert builder.build_segments([user("a longer text")]) == BUILDER.build_segments([user("a longer text")])


@pytest.mark.parametrize(
    "source",
    [
        "{% for",  # not a template
        "\ue000",  # contains a placeholder character
        "{{ messages[0].content[0].text }}",  # drops the second text
        "{% for p in messages[0].content %}{{ p.text }}{{ p.text }}{% endfor %}",  # repeats texts
        "{% for p in messages[0].content %}{{ p.text }}{% endfor %}",  # outputs no image
        "{{ messages[0].content[0].text.format.__globals__ }}",  # leaves the sandbox
        "{{ messages.append(1) }}",  # changes the conversation
        "{{ messages[0].role + messages[0].content }}",  # treats the parts as one text
        "{{ range(10 ** 9) | list }}",  # takes all memory
    ],
)
def test_an_invalid_template_is_refused(source: str) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        PromptBuilder(CONFIG, TOKENIZER, ChatTemplate(source)).build_segments([user("a", "b", None)])
    assert raised.value.reason == "BAD_CHECKPOINT"


def test_a_template_may_refuse_a_conversation() -> None:
    builder = PromptBuilder(CONFIG, TOKENIZER, ChatTemplate("{{ raise_exception('no system turn, please') }}"))
    with pytest.raises(InvalidArgument, match="no system turn") as raised:
        builder.build_segments([user("a")])
    assert (raised.value.reason, raised.value.field) == ("TEMPLATE_REFUSED", "messages")


def test_a_tokenizer_that_does_not_fit_the_model_is_refused() -> None:
    larger = Tokenizer.from_str(TOKENIZER.to_str())
    larger.add_tokens([f"extra{index}" for index in range(100)])
    other_image_token = CONFIG.model_copy(update={"image_token": "<image>"})
    for config, tokenizer in ((CONFIG, larger), (other_image_token, TOKENIZER)):
        with pytest.raises(FailedPrecondition):
            PromptBuilder(config, tokenizer, ChatTemplate(CHAT_TEMPLATE))


@pytest.mark.parametrize(
    ("name", "cause"), [("tokenizer.json", "expected value at line 1"), ("chat_template.jinja", "can't decode byte")]
)
def test_the_error_for_an_invalid_file_names_the_file_and_the_cause(
    store: Path, tmp_path: Path, name: str, cause: str
) -> None:
    (tag,) = [folder.name for folder in store.iterdir()]
    folder = shutil.copytree(store / tag, tmp_path / tag)
    (folder / name).write_bytes(b"\xff")
    manifest = read_manifest(folder)
    digests = {**manifest.files, name: hashlib.sha256(b"\xff").digest()}
    write_manifest(manifest.model_copy(update={"files": digests}), folder)
    with pytest.raises(FailedPrecondition, match=f"{name} of {tag} is not valid: .*{cause}") as raised:
        open_prompt_builder(folder)
    assert str(tmp_path) not in raised.value.message
