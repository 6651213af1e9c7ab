"""Hold prompts within token limits by cutting their oldest text."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

from chassis.errors import InvalidArgument
from processing.chat_template import ChatMessage, ImagePart, TextPart
from processing.prompt import PromptBuilder, Segment, TextSegment

Overflow = Literal["truncate", "raise"]


class PromptLimits(NamedTuple):
    """Limits of one prompt, in tokens."""

    max_text_tokens: int  # all tokens but visual tokens
    max_length: int  # visual tokens included


def build_within(
    builder: PromptBuilder,
    messages: Sequence[ChatMessage],
    num_visual_tokens: Sequence[int],
    limits: PromptLimits,
    on_overflow: Overflow,
) -> list[Segment]:
    """Return the segments of a prompt that meets the limits.

    A longer prompt loses the beginning of its message text, the oldest message first. Images and the text of the chat
    template stay. The result is the prompt of the shortened conversation.

    Args:
        builder: of the checkpoint.
        messages: the conversation.
        num_visual_tokens: of each image.
        limits: of the prompt.
        on_overflow: 'truncate', or 'raise' to refuse a longer prompt.

    Raises:
        InvalidArgument: reason 'PROMPT_TOO_LONG', or 'IMAGES_TOO_LONG' if its images do not fit even without text.
    """
    num_visual = sum(num_visual_tokens)
    if num_visual > limits.max_length:
        raise _too_long(0, num_visual, limits)
    segments = builder.build_segments(messages)
    while (excess := _excess(segments, num_visual, limits)) > 0:
        if on_overflow == "raise":
            raise _too_long(_count_text(segments), num_visual, limits)
        shorter = _without_oldest(builder, messages, excess)
        if shorter == messages:  # no text is left
            raise _too_long(_count_text(segments), num_visual, limits, only_images=num_visual > 0)
        messages, segments = shorter, builder.build_segments(shorter)
    return segments


def _count_text(segments: Sequence[Segment]) -> int:
    return sum(len(segment.token_ids) for segment in segments if isinstance(segment, TextSegment))


def _excess(segments: Sequence[Segment], num_visual: int, limits: PromptLimits) -> int:
    """Return how many text tokens to cut, 0 for none."""
    num_text = _count_text(segments)
    return max(num_text - limits.max_text_tokens, num_text + num_visual - limits.max_length)


def _without_oldest(builder: PromptBuilder, messages: Sequence[ChatMessage], num_tokens: int) -> list[ChatMessage]:
    """Return the messages without their oldest text tokens.

    About `num_tokens` are cut, because the rest is encoded again.
    """
    shorter: list[ChatMessage] = []
    for message in messages:
        content: list[TextPart | ImagePart] = []
        for part in message["content"]:
            if part["type"] == "text" and num_tokens > 0:
                length = len(builder.encode_text(part["text"]))
                content.append({"type": "text", "text": _suffix(builder, part["text"], length - num_tokens)})
                num_tokens -= length
            else:
                content.append(part)
        shorter.append({"role": message["role"], "content": content})
    return shorter


def _suffix(builder: PromptBuilder, text: str, num_tokens: int) -> str:
    """Return the longest end of `text` within `num_tokens`.

    It is cut between characters, so no character is torn.
    """
    if num_tokens <= 0:
        return ""
    start = bisect_left(range(len(text)), -num_tokens, key=lambda at: -len(builder.encode_text(text[at:])))
    return text[start:]


def _too_long(num_text: int, num_visual: int, limits: PromptLimits, *, only_images: bool = False) -> InvalidArgument:
    sizes = {
        "text_tokens": num_text,
        "visual_tokens": num_visual,
        "max_text_tokens": limits.max_text_tokens,
        "max_length": limits.max_length,
    }
    if only_images or num_visual > limits.max_length:
        message = f"The images take {num_visual} of at most {limits.max_length} tokens: give fewer or smaller images."
        reason = "IMAGES_TOO_LONG"
    else:
        message = (
            f"The prompt has {num_text} text tokens, {num_text + num_visual} with its images. The limits are "
            f"{limits.max_text_tokens} and {limits.max_length}: shorten its text, or set on_overflow='truncate'."
        )
        reason = "PROMPT_TOO_LONG"
    metadata = {name: str(size) for name, size in sizes.items()}
    return InvalidArgument(message, reason=reason, field="messages", metadata=metadata)
