"""Turn chat messages into segments: token ids and image slots.

Training and serving both use this module, so prompts have the same token ids in both.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition, Internal, InvalidArgument
from checkpoint.families import ModelConfig
from checkpoint.manifest import TEMPLATE_FILE, TOKENIZER_FILE, read_manifest, read_verified, read_verified_config
from checkpoint.tokenizer import check_tokenizer
from processing.chat_template import (
    PLACEHOLDER_CHARACTERS,
    ChatMessage,
    ChatTemplate,
    FunctionTool,
    MessageText,
    TemplateText,
)


@dataclass(frozen=True, slots=True)
class TextSegment:
    """Consecutive token ids of text."""

    token_ids: tuple[int, ...]  # at least 1


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The position of one image in a prompt."""

    index: int  # number of the image in the conversation, from 0


Segment = TextSegment | ImageSlot

_CACHED_TEMPLATE_TEXTS = 256  # a template writes the same few texts for every conversation
_MAX_CACHED_CHARACTERS = 8192  # of one text. Those with many tools are longer.


class PromptBuilder:
    """Turns messages into segments, for one checkpoint."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        """Prepare two encoders, one with and one without special tokens.

        Raises:
            FailedPrecondition: reason 'BAD_CHECKPOINT', the tokenizer does not fit the configuration.
        """
        self.tokenizer = tokenizer
        self.config = config
        self.image_id = check_tokenizer(tokenizer, config)
        self._template = template
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(added)
        # Some tokenizers have added tokens of spaces, which are text like any other.
        reserved = [*PLACEHOLDER_CHARACTERS, *(token.content for token in added.values() if token.content.strip())]
        self._reserved = re.compile("|".join(map(re.escape, reserved)))
        self._with_specials = _copy(tokenizer, keep_added_tokens=True)
        self._without_specials = _copy(tokenizer, keep_added_tokens=False)
        self._encode_template = lru_cache(_CACHED_TEMPLATE_TEXTS)(self._encode_with_specials)

    @property
    def renders_tools(self) -> bool:
        """Whether the chat template renders tools and their calls."""
        return self._template.renders_tools

    def is_quick(
        self, messages: Sequence[ChatMessage], tools: Sequence[FunctionTool] = (), *, continues_last: bool = False
    ) -> bool:
        """Return whether building these segments waits for no process."""
        return self._template.has_rendered(messages, tools, continues_last=continues_last)

    def build_segments(
        self, messages: Sequence[ChatMessage], tools: Sequence[FunctionTool] = (), *, continues_last: bool = False
    ) -> list[Segment]:
        """Return the prompt for the next answer to `messages`.

        Adjacent texts share one segment.

        Args:
            messages: the conversation.
            tools: that the model may call.
            continues_last: the answer continues the last message, which is the model's and ends with a text.

        Raises:
            InvalidArgument: the template refuses the conversation, or reason 'TOOLS_UNSUPPORTED' or 'RESERVED_TEXT'.
            FailedPrecondition: the template fails, or does not output every text and image exactly once.
        """
        self._check_tools(messages, tools)
        segments: list[Segment] = []
        token_ids: list[int] = []
        num_images = 0
        for token_id in self._token_ids(messages, tools, continues_last):
            if token_id != self.image_id:
                token_ids.append(token_id)
                continue
            if token_ids:
                segments.append(TextSegment(tuple(token_ids)))
                token_ids = []
            segments.append(ImageSlot(num_images))
            num_images += 1
        if token_ids:
            segments.append(TextSegment(tuple(token_ids)))
        expected = sum(part["type"] == "image" for message in messages for part in message["content"])
        if num_images != expected:
            raise FailedPrecondition(
                f"The chat template must output every image once, but it output {num_images} of {expected}.",
                reason="BAD_CHECKPOINT",
            )
        return segments

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of message text, without special tokens.

        Raises:
            Internal: reason 'BAD_CHECKPOINT', the tokenizer turned the text into a special token.
        """
        token_ids: list[int] = self._without_specials.encode(text, add_special_tokens=False).ids
        if not self._special_ids.isdisjoint(token_ids):
            # This vocabulary can merge ordinary pieces into a special token. Fail rather than accept a forged message.
            raise Internal("The tokenizer turned plain text into a special token.", reason="BAD_CHECKPOINT")
        return token_ids

    def count_tokens(self, segments: Sequence[Segment], num_visual_tokens: Sequence[int]) -> int:
        """Return the number of tokens of `segments`, visual tokens included.

        Args:
            segments: of the prompt.
            num_visual_tokens: of each image, in the order of the conversation.
        """
        return sum(
            len(segment.token_ids) if isinstance(segment, TextSegment) else num_visual_tokens[segment.index]
            for segment in segments
        )

    def _check_tools(self, messages: Sequence[ChatMessage], tools: Sequence[FunctionTool]) -> None:
        """Check that the template may see tools and calls."""
        calls = {index: message["tool_calls"] for index, message in enumerate(messages) if message.get("tool_calls")}
        places = [*([("tools", tools)] if tools else []), *((f"messages[{at}].tool_calls", calls[at]) for at in calls)]
        places += [(f"messages[{at}].role", ()) for at, message in enumerate(messages) if message["role"] == "tool"]
        for place, functions in places:
            if not self.renders_tools:
                raise InvalidArgument(
                    "This model's chat template has no place for tools: leave them out, or choose another model.",
                    reason="TOOLS_UNSUPPORTED",
                    field=place,
                )
            if found := self._reserved.search(json.dumps(functions, ensure_ascii=False)):
                raise InvalidArgument(
                    f"A tool or its call has the text {found[0]!r}, which only the chat template may write: remove it.",
                    reason="RESERVED_TEXT",
                    field=place,
                )

    def _token_ids(
        self, messages: Sequence[ChatMessage], tools: Sequence[FunctionTool], continues_last: bool
    ) -> Iterator[int]:
        for piece in self._template.render(messages, tools, continues_last=continues_last):
            match piece:
                case TemplateText(text):
                    is_short = len(text) <= _MAX_CACHED_CHARACTERS
                    yield from (self._encode_template if is_short else self._encode_with_specials)(text)
                case MessageText(text):
                    yield from self.encode_text(text)

    def _encode_with_specials(self, text: str) -> tuple[int, ...]:
        # 'add_special_tokens' would add start and end tokens, which the template already wrote.
        return tuple(self._with_specials.encode(text, add_special_tokens=False).ids)


def open_prompt_builder(folder: Path) -> PromptBuilder:
    """Return the prompt builder of a checkpoint folder.

    Raises:
        FailedPrecondition: reason 'BAD_CHECKPOINT', the configuration, tokenizer or template is missing or invalid.
        DataLoss: reason 'DIGEST_MISMATCH', one of them does not match the manifest.
    """
    manifest = read_manifest(folder)
    tokenizer_json, template = (read_verified(folder, manifest, name) for name in (TOKENIZER_FILE, TEMPLATE_FILE))
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise _invalid(TOKENIZER_FILE, folder, error) from error
    try:
        source = template.decode()
    except UnicodeDecodeError as error:
        raise _invalid(TEMPLATE_FILE, folder, error) from error
    return PromptBuilder(read_verified_config(folder, manifest), tokenizer, ChatTemplate(source))


def _invalid(name: str, folder: Path, error: Exception) -> FailedPrecondition:
    return FailedPrecondition(f"The file {name} of {folder.name} is not valid: {error}.", reason="BAD_CHECKPOINT")


def _copy(tokenizer: Tokenizer, *, keep_added_tokens: bool) -> Tokenizer:
    """Return a copy of `tokenizer` without truncation and padding.

    Without its added tokens, their spelling is encoded as ordinary text. The library's own option for this,
    `encode_special_tokens`, does not cover added tokens that are not marked special (tool calls, thinking).
    """
    state = json.loads(tokenizer.to_str())
    if not keep_added_tokens:
        state["added_tokens"] = []
        state["post_processor"] = None  # it may refer to added tokens, and is not needed here
    copy = Tokenizer.from_str(json.dumps(state))
    copy.no_truncation()
    copy.no_padding()
    return copy
