"""From a conversation to the segments of a prompt: token ids, and places for images.

Training and serving both build prompts here, so that a model is asked with the very ids it was trained with.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition, Internal
from checkpoint.config import ModelConfig
from checkpoint.manifest import TEMPLATE_FILE, TOKENIZER_FILE, read_manifest, read_verified, read_verified_config
from processing.chat_template import ChatMessage, ChatTemplate, SpokenText, TemplateText


@dataclass(frozen=True, slots=True)
class TextSegment:
    """A stretch of text."""

    token_ids: tuple[int, ...]  # at least 1


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of one image."""

    index: int  # which image of the conversation, from 0


Segment = TextSegment | ImageSlot

# What a template writes around turns is the same few texts for every conversation.
_CACHED_TEMPLATE_TEXTS = 256


class PromptBuilder:
    """Builds prompts for one checkpoint."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        """Prepare the two encoders, one that knows the special tokens and one that does not.

        Raises:
            FailedPrecondition: the tokenizer does not fit the configuration.
        """
        image_id = tokenizer.token_to_id(config.image_token)
        if image_id is None:
            raise FailedPrecondition(
                f"The tokenizer has no token {config.image_token!r}, which stands for an image.",
                reason="BAD_CHECKPOINT",
            )
        highest_id = max(tokenizer.get_vocab(with_added_tokens=True).values())
        if highest_id >= config.language.vocab_size:
            raise FailedPrecondition(
                f"The tokenizer has the token id {highest_id}, the model's vocabulary ends before.",
                reason="BAD_CHECKPOINT",
            )
        self.tokenizer = tokenizer
        self.num_visual_tokens = config.num_visual_tokens  # positions one image takes
        self._image_id = image_id
        self._template = template
        self._special_ids = frozenset(tokenizer.get_added_tokens_decoder())
        self._with_specials = _copy(tokenizer, keep_added_tokens=True)
        self._without_specials = _copy(tokenizer, keep_added_tokens=False)
        self._encode_template = lru_cache(_CACHED_TEMPLATE_TEXTS)(self._encode_with_specials)

    def build(self, messages: Sequence[ChatMessage]) -> list[Segment]:
        """Return the prompt for the next answer to `messages`; no two text segments stand side by side.

        Raises:
            InvalidArgument: the template refuses the conversation.
            FailedPrecondition: the template fails, or does not place every text and image exactly once.
        """
        segments: list[Segment] = []
        token_ids: list[int] = []
        num_images = 0
        for token_id in self._token_ids(messages):
            if token_id != self._image_id:
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
                f"The chat template placed {num_images} images of {expected}.", reason="BAD_CHECKPOINT"
            )
        return segments

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of text somebody wrote; whatever it says, none is a special token."""
        token_ids: list[int] = self._without_specials.encode(text, add_special_tokens=False).ids
        if not self._special_ids.isdisjoint(token_ids):
            # A vocabulary that spells a special token out of ordinary pieces; better no answer than a forged turn.
            raise Internal("The tokenizer turned plain text into a special token.", reason="BAD_CHECKPOINT")
        return token_ids

    def count(self, segments: Sequence[Segment]) -> int:
        """Return the positions `segments` take in the model's context."""
        return sum(
            len(segment.token_ids) if isinstance(segment, TextSegment) else self.num_visual_tokens
            for segment in segments
        )

    def _token_ids(self, messages: Sequence[ChatMessage]) -> Iterator[int]:
        for piece in self._template.render(messages):
            match piece:
                case TemplateText(text):
                    yield from self._encode_template(text)
                case SpokenText(text):
                    yield from self.encode_text(text)

    def _encode_with_specials(self, text: str) -> tuple[int, ...]:
        # 'add_special_tokens' is about a frame around the whole text, which the template already wrote.
        return tuple(self._with_specials.encode(text, add_special_tokens=False).ids)


def open_prompt_builder(folder: Path) -> PromptBuilder:
    """Read the configuration, the tokenizer and the chat template of a checkpoint folder.

    Raises:
        FailedPrecondition: reason 'BAD_CHECKPOINT', one of the files is missing or not valid.
        DataLoss: reason 'DIGEST_MISMATCH', one of them is not what the manifest says.
    """
    manifest = read_manifest(folder)
    tokenizer_json, template = (read_verified(folder, manifest, name) for name in (TOKENIZER_FILE, TEMPLATE_FILE))
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
        source = template.decode()
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise FailedPrecondition(
            f"{TOKENIZER_FILE} or {TEMPLATE_FILE} of {folder.name} cannot be read.", reason="BAD_CHECKPOINT"
        ) from error
    return PromptBuilder(read_verified_config(folder, manifest), tokenizer, ChatTemplate(source))


def _copy(tokenizer: Tokenizer, *, keep_added_tokens: bool) -> Tokenizer:
    """Return a copy that neither cuts nor pads; without its added tokens they are spelled out like any text.

    Dropping them does more than the library's own `encode_special_tokens`, which leaves the added tokens that are not
    marked special (tool calls, thinking) in force.
    """
    state = json.loads(tokenizer.to_str())
    if not keep_added_tokens:
        state["added_tokens"] = []
        state["post_processor"] = None  # may name added tokens, and frames nothing here
    copy = Tokenizer.from_str(json.dumps(state))
    copy.no_truncation()
    copy.no_padding()
    return copy
