"""Prompts over a limit are shortened or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from processing import Processor
from processing.limits import Overflow
from tandem import Image, Message, assistant, system, user
from tests.processing.image_zoo import IMAGES
from tests.processing.test_processor import IMAGE_ID, served_ids

IMAGE = Image(IMAGES["tiny"])
# 32 visual tokens each in the resampler family. The byte tokenizer has one token per byte.
TURNS = [
    system("Answer in one word."),
    user(IMAGE, "What is in the first image, 请问？"),
    assistant("Noise."),
    user("And here: ", IMAGE, "which colour is it?"),
]
LATER_TURNS = st.lists(st.builds(user, st.just(IMAGE), st.text(st.sampled_from("ab 中🙂"), min_size=1)), max_size=2)


def decoded(processor: Processor, ids: np.ndarray) -> str:
    """Return the text of a prompt without image tokens."""
    text = [token_id for token_id in ids.tolist() if token_id != IMAGE_ID]
    return str(processor.tokenizer.decode(text, skip_special_tokens=False))


def num_text(ids: np.ndarray) -> int:
    return int((ids != IMAGE_ID).sum())


def test_the_resampler_family_takes_512_text_tokens_of_1024(resampler: Processor) -> None:
    frame = num_text(resampler([[user("")]])["input_ids"])
    assert resampler([[user("a" * (512 - frame))]])["input_ids"].shape == (1, 512)
    for turns in ([user("a" * (513 - frame))], [user("a" * 400, *[IMAGE] * 19)]):
        with pytest.raises(InvalidArgument) as raised:
            resampler([turns])
        assert (raised.value.reason, raised.value.field) == ("PROMPT_TOO_LONG", "samples[0].messages")
    (ids,) = resampler([[user("a" * 600, *[IMAGE] * 19)]], on_overflow="truncate")["input_ids"]
    assert len(ids) == 1024
    assert (ids == IMAGE_ID).sum() == 19 * 32


def test_qwen3_vl_takes_the_context_of_the_model(qwen: Processor) -> None:
    frame = num_text(qwen([[user("")]])["input_ids"])
    assert qwen([[user("a" * (4096 - frame))]])["input_ids"].shape == (1, 4096)
    with pytest.raises(InvalidArgument, match="limits are 4096 and 4096"):
        qwen([[user("a" * (4097 - frame))]])


def test_both_limits_are_arguments(resampler: Processor) -> None:
    assert resampler([[user("a" * 2000)]], max_text_tokens=4000, max_length=4000)["input_ids"].shape[1] > 2000
    lower: list[dict[str, Any]] = [{"max_text_tokens": 60}, {"max_length": 200}]
    for limits in lower:
        with pytest.raises(InvalidArgument) as raised:
            resampler([TURNS], **limits)
        (name, limit), error = *limits.items(), raised.value
        assert (error.reason, error.metadata[name]) == ("PROMPT_TOO_LONG", str(limit))
        assert error.metadata["visual_tokens"] == "64"


def test_the_oldest_text_goes_first(resampler: Processor) -> None:
    whole = resampler([TURNS])["input_ids"]
    for dropped, beginning in ((7, "system\nin one word."), (19, "system\n<|im_end|>"), (34, "user\nfirst")):
        (ids,) = resampler([TURNS], max_length=whole.shape[1] - dropped, on_overflow="truncate")["input_ids"]
        assert len(ids) == whole.shape[1] - dropped
        text = decoded(resampler, ids).replace("<|vision_start|><|vision_end|>", "")
        assert beginning in text
        assert text.endswith("which colour is it?<|im_end|>\n<|im_start|>assistant\n")


def test_text_is_cut_between_characters(resampler: Processor) -> None:
    """A token may be a part of a character."""
    turns = [user("问题问题")]
    whole = resampler([turns])["input_ids"].shape[1]
    for dropped, left in ((1, "题问题"), (3, "题问题"), (4, "问题"), (12, "")):
        (ids,) = resampler([turns], max_text_tokens=whole - dropped, on_overflow="truncate")["input_ids"]
        assert decoded(resampler, ids) == f"<|im_start|>user\n{left}<|im_end|>\n<|im_start|>assistant\n"


@given(LATER_TURNS, st.integers(90, 400), st.integers(140, 500))
def test_a_truncated_prompt_is_that_of_shorter_messages(
    resampler: Processor, resampler_folder: Path, later: list[Message], max_text_tokens: int, max_length: int
) -> None:
    """Images and the template's text stay, within every limit."""
    turns = [*TURNS, *later]
    limits: dict[str, Any] = {"max_text_tokens": max_text_tokens, "max_length": max_length, "on_overflow": "truncate"}
    without_text = [Message(turn.role, _without_text(turn)) for turn in turns]
    least = resampler([without_text], max_length=10_000)["input_ids"]
    if least.size > max_length or num_text(least) > max_text_tokens:
        with pytest.raises(InvalidArgument) as raised:
            resampler([turns], **limits)
        assert raised.value.reason == "IMAGES_TOO_LONG"
        return
    inputs = resampler([turns], **limits)
    (ids,) = inputs["input_ids"]
    assert len(ids) <= max_length
    assert num_text(ids) <= max_text_tokens
    whole = resampler([turns], max_text_tokens=10_000, max_length=10_000)
    np.testing.assert_array_equal(inputs["pixel_values"], whole["pixel_values"])
    assert (ids == IMAGE_ID).sum() == (whole["input_ids"] == IMAGE_ID).sum()
    texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
    message_text, kept = "".join(texts), decoded(resampler, ids)
    for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"):
        assert kept.count(token) == decoded(resampler, whole["input_ids"][0]).count(token)
    assert message_text.endswith(_message_text(kept))


def _without_text(turn: Message) -> tuple[str | Image, ...]:
    return tuple("" if isinstance(part, str) else part for part in turn.parts)


def _message_text(prompt: str) -> str:
    """Return the texts of a prompt's messages, joined."""
    turns = prompt.removesuffix("<|im_start|>assistant\n").split("<|im_start|>")[1:]
    texts = (turn.removesuffix("<|im_end|>\n").partition("\n")[2] for turn in turns)
    return "".join(text.replace("<|vision_start|>", "").replace("<|vision_end|>", "") for text in texts)


def test_images_that_do_not_fit_are_refused(resampler: Processor) -> None:
    """Neither way of handling long prompts drops an image."""
    overflows: tuple[Overflow, ...] = ("truncate", "raise")
    for overflow in overflows:
        with pytest.raises(InvalidArgument) as raised:
            resampler([TURNS, [user(*[IMAGE] * 33, "?")]], on_overflow=overflow)
        assert (raised.value.reason, raised.value.field) == ("IMAGES_TOO_LONG", "samples[1].messages")
        assert "take 1056 of at most 1024 tokens" in raised.value.message


def test_a_limit_below_the_template_s_text_is_refused(resampler: Processor) -> None:
    with pytest.raises(InvalidArgument) as raised:
        resampler([[user("a")]], max_text_tokens=5, on_overflow="truncate")
    assert raised.value.reason == "PROMPT_TOO_LONG"


def test_a_prompt_within_the_limits_is_not_changed(resampler: Processor, resampler_folder: Path) -> None:
    files = [user("Compare."), assistant("What?"), user("These.")]
    (ids,) = resampler([files], on_overflow="truncate")["input_ids"]
    assert ids.tolist() == served_ids(resampler_folder, files)
