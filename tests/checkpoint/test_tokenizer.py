"""The byte tokenizer and chat template of new checkpoints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chassis.errors import FailedPrecondition
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, byte_tokenizer, check_tokenizer, read_tokenizer

TOKENIZER = byte_tokenizer()


def test_special_tokens_have_the_first_ids() -> None:
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert TOKENIZER.get_vocab_size() == 6 + 256


@given(st.text(st.characters(codec="utf-8", exclude_characters="<")))
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    assert len(ids) == len(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_special_tokens_are_single_tokens() -> None:
    assert TOKENIZER.encode("<|im_start|>a<|im_end|>").ids[::2] == [1, 2]


@pytest.mark.parametrize("trim", [False, True])
def test_the_template_writes_chatml_with_any_trim_setting(trim: bool) -> None:
    template = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim).from_string(CHAT_TEMPLATE)
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "  kept \n"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "问?"}, {"type": "image"}]},
    ]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    written = f"<|im_start|>system\n  kept \n<|im_end|>\n<|im_start|>user\n{image}问?{image}<|im_end|>\n"
    assert template.render(messages=messages) == written
    assert template.render(messages=messages, add_generation_prompt=True) == written + "<|im_start|>assistant\n"


def test_a_tokenizer_beyond_the_vocabulary_is_refused() -> None:
    config = RESAMPLER_PRESETS["tiny"]
    small = config.model_copy(update={"language": config.language.model_copy(update={"vocab_size": 261})})
    check_tokenizer(TOKENIZER, config)
    with pytest.raises(FailedPrecondition, match="token id 261"):
        check_tokenizer(TOKENIZER, small)


@pytest.mark.parametrize("text", ["", "{}", "no json", "\0"])
def test_text_that_is_not_a_tokenizer_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"tokenizer\.json"):
        check_tokenizer(read_tokenizer(text), RESAMPLER_PRESETS["tiny"])
