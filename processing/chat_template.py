"""Render a chat template, and keep message text apart from template text.

The template runs in Jinja2's immutable sandbox. It never sees the texts of a conversation: a placeholder replaces each
text, and the rendered string is split at the placeholders. So message text cannot imitate template text.

Tools and their calls are different: a template looks into them, so their texts become template text. The prompt builder
refuses those that spell a special token.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, NotRequired, TypedDict

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chassis.errors import FailedPrecondition, InvalidArgument

# Placeholders use Unicode's private use area. A template that contains these characters is refused.
PLACEHOLDER_CHARACTERS = _OPEN, _CLOSE = "\ue000", "\ue001"
_PLACEHOLDER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class TextPart(TypedDict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """An image in a message. Its data is kept elsewhere."""

    type: Literal["image"]


class Function(TypedDict):
    """The function of a tool or of a call."""

    name: str
    description: NotRequired[str]
    parameters: NotRequired[Mapping[str, Any]]  # JSON schema of a tool's arguments
    arguments: NotRequired[Mapping[str, Any]]  # of a call


class FunctionTool(TypedDict):
    """A tool or its call, as templates expect it."""

    type: Literal["function"]
    function: Function


class ChatMessage(TypedDict):
    """One message, in the form that templates expect."""

    role: Literal["system", "user", "assistant", "tool"]
    content: list[TextPart | ImagePart]
    tool_calls: NotRequired[list[FunctionTool]]


@dataclass(frozen=True, slots=True)
class TemplateText:
    """Text that the template wrote. It may contain special tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class MessageText:
    """Text of a message. It never becomes a special token."""

    text: str


class ChatTemplate:
    """A compiled `chat_template.jinja`."""

    def __init__(self, source: str) -> None:
        """Compile `source`.

        Raises:
            FailedPrecondition: it is no valid template, or it contains the placeholder characters.
        """
        if _OPEN in source or _CLOSE in source:
            raise FailedPrecondition(
                "The chat template contains U+E000 or U+E001, which are reserved: remove them.", reason="BAD_CHECKPOINT"
            )
        # Released templates expect these block options and loop controls.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
            self.renders_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise FailedPrecondition(f"The chat template is not valid: {error}", reason="BAD_CHECKPOINT") from error

    def render(
        self, messages: Sequence[ChatMessage], tools: Sequence[FunctionTool] = (), *, continues_last: bool = False
    ) -> list[TemplateText | MessageText]:
        """Return the prompt as pieces of template and message text.

        Args:
            messages: the conversation.
            tools: only for a template that `renders_tools`.
            continues_last: end the prompt within the last message, after its text.

        Raises:
            InvalidArgument: the template refuses this conversation, for example two user messages in a row.
            FailedPrecondition: the template fails, or does not output every text exactly once.
        """
        texts: list[str] = []
        replaced = [_replace_texts(message, texts) for message in messages]
        try:
            rendered = self._template.render(
                messages=replaced, tools=list(tools) or None, add_generation_prompt=not continues_last
            )
        except _RefusedError as error:
            raise InvalidArgument(
                f"The model's chat template refuses this conversation: {error}",
                reason="TEMPLATE_REFUSED",
                field="messages",
            ) from error
        except Exception as error:  # a template runs Python expressions, which can raise anything
            raise FailedPrecondition(f"The chat template failed: {error}", reason="BAD_CHECKPOINT") from error
        positions = [int(index) for index in _PLACEHOLDER.findall(rendered)]
        if sorted(positions) != list(range(len(texts))):
            raise FailedPrecondition(
                "The chat template must output every text of a message exactly once.", reason="BAD_CHECKPOINT"
            )
        if continues_last:
            rendered = _up_to_text(rendered, len(texts) - 1)
        return list(_pieces(rendered, texts))


class _RefusedError(TemplateError):
    """Raised by a template that calls `raise_exception(...)`."""


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    """Write JSON as models were trained with it.

    Jinja's own filter escapes characters for HTML and sorts keys.
    """
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _replace_texts(message: ChatMessage, texts: list[str]) -> ChatMessage:
    """Return `message` with placeholders, and append its texts to `texts`."""
    content: list[TextPart | ImagePart] = []
    for part in message["content"]:
        if part["type"] == "text":
            content.append({"type": "text", "text": f"{_OPEN}{len(texts)}{_CLOSE}"})
            texts.append(part["text"])
        else:
            content.append({"type": "image"})
    return {**message, "content": content}


def _up_to_text(rendered: str, index: int) -> str:
    """Return a prompt up to one text."""
    end = f"{_OPEN}{index}{_CLOSE}"
    before, _, after = rendered.rpartition(end)
    if _PLACEHOLDER.search(after):
        raise FailedPrecondition(
            "The chat template must output the last message last, so that it can be continued.", reason="BAD_CHECKPOINT"
        )
    return before + end


def _pieces(rendered: str, texts: Sequence[str]) -> Iterator[TemplateText | MessageText]:
    # Splitting at a pattern with one group alternates: template text, index, template text, index, ...
    for position, piece in enumerate(_PLACEHOLDER.split(rendered)):
        if position % 2:
            yield MessageText(texts[int(piece)])
        elif piece:
            yield TemplateText(piece)
