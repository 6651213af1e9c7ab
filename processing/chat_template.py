"""A checkpoint's chat template, rendered so that what people wrote stays apart from what the template wrote.

The template runs in Jinja2's immutable sandbox and never sees a word of the conversation: every text is replaced by a
mark that stands for it, and the rendered string is split at the marks. So no text can pass for the template's own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, TypedDict

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chassis.errors import FailedPrecondition, InvalidArgument

# From Unicode's private use area; a template that contains one of these itself is refused.
_OPEN, _CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class TextPart(TypedDict):
    """Words of a message."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """The place of an image in a message."""

    type: Literal["image"]


class ChatMessage(TypedDict):
    """One turn, as templates expect it."""

    role: Literal["system", "user", "assistant"]
    content: list[TextPart | ImagePart]


@dataclass(frozen=True, slots=True)
class TemplateText:
    """A piece the template wrote: its special tokens count as such."""

    text: str


@dataclass(frozen=True, slots=True)
class SpokenText:
    """A piece somebody wrote: nothing in it is a special token."""

    text: str


class ChatTemplate:
    """A compiled `chat_template.jinja`."""

    def __init__(self, source: str) -> None:
        """Compile `source`.

        Raises:
            FailedPrecondition: it is not a template, or it contains the characters that mark texts here.
        """
        if _OPEN in source or _CLOSE in source:
            raise FailedPrecondition("The chat template contains U+E000 or U+E001.", reason="BAD_CHECKPOINT")
        # The block options and loop controls are those released templates are written for.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise FailedPrecondition(f"The chat template is not valid: {error}", reason="BAD_CHECKPOINT") from error

    def render(self, messages: Sequence[ChatMessage]) -> list[TemplateText | SpokenText]:
        """Return the prompt for the next answer, in order, as pieces by author.

        Raises:
            InvalidArgument: the template refuses this conversation (two user turns in a row, say).
            FailedPrecondition: the template fails, or does not place every text exactly once.
        """
        texts: list[str] = []
        marked = [_mark_texts(message, texts) for message in messages]
        try:
            rendered = self._template.render(messages=marked, add_generation_prompt=True)
        except _RefusedError as error:
            raise InvalidArgument(
                f"The model's chat template refuses this conversation: {error}",
                reason="TEMPLATE_REFUSED",
                field="messages",
            ) from error
        except Exception as error:  # what a template does is Python: it adds a text to a list, or divides by zero
            raise FailedPrecondition(f"The chat template failed: {error}", reason="BAD_CHECKPOINT") from error
        placed = [int(index) for index in _MARK.findall(rendered)]
        if sorted(placed) != list(range(len(texts))):
            raise FailedPrecondition("The chat template drops or repeats a text.", reason="BAD_CHECKPOINT")
        return list(_pieces(rendered, texts))


class _RefusedError(TemplateError):
    """Raised by a template's own `raise_exception(...)`."""


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _mark_texts(message: ChatMessage, texts: list[str]) -> ChatMessage:
    """Return `message` with a mark for every text, and append the texts to `texts`."""
    content: list[TextPart | ImagePart] = []
    for part in message["content"]:
        if part["type"] == "text":
            content.append({"type": "text", "text": f"{_OPEN}{len(texts)}{_CLOSE}"})
            texts.append(part["text"])
        else:
            content.append({"type": "image"})
    return {"role": message["role"], "content": content}


def _pieces(rendered: str, texts: Sequence[str]) -> Iterator[TemplateText | SpokenText]:
    # Splitting at a pattern with one group alternates: template text, index, template text, index, ...
    for position, piece in enumerate(_MARK.split(rendered)):
        if position % 2:
            yield SpokenText(texts[int(piece)])
        elif piece:
            yield TemplateText(piece)
