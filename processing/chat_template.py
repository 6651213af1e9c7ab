"""Render a chat template, and keep message text apart from template text.

The template runs in Jinja2's immutable sandbox, in a process with limits. It never sees the texts of a conversation: a
placeholder replaces each text, and the rendered string is split at the placeholders. So message text cannot imitate
template text.

Tools and their calls are different: a template looks into them, so their texts become template text. The prompt builder
refuses those that spell a special token.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from chassis.errors import FailedPrecondition, InvalidArgument
from processing.template_process import TemplateProcess

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


_TRIAL: list[ChatMessage] = [{"role": "user", "content": [{"type": "text", "text": f"{_OPEN}0{_CLOSE}"}]}]


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
            FailedPrecondition: it is no valid template, contains the placeholder characters, or takes too much time or
                memory.
        """
        if _OPEN in source or _CLOSE in source:
            raise FailedPrecondition(
                "The chat template contains U+E000 or U+E001, which are reserved: remove them.", reason="BAD_CHECKPOINT"
            )
        self._process = TemplateProcess(source)
        self.renders_tools = self._process.renders_tools
        self._process.render(_arguments(_TRIAL))  # a template that takes too much fails now

    def has_rendered(
        self, messages: Sequence[ChatMessage], tools: Sequence[FunctionTool] = (), *, continues_last: bool = False
    ) -> bool:
        """Return whether `render` need not wait for the process."""
        texts: list[str] = []
        replaced = [_replace_texts(message, texts) for message in messages]
        return self._process.has_rendered(_arguments(replaced, tools, continues_last=continues_last))

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
            FailedPrecondition: the template fails, takes too much time or memory, or does not output every text exactly
                once.
        """
        texts: list[str] = []
        replaced = [_replace_texts(message, texts) for message in messages]
        reply = self._process.render(_arguments(replaced, tools, continues_last=continues_last))
        if "refused" in reply:
            raise InvalidArgument(
                f"The model's chat template refuses this conversation: {reply['refused']}",
                reason="TEMPLATE_REFUSED",
                field="messages",
            )
        if "failed" in reply:
            raise FailedPrecondition(f"The chat template failed: {reply['failed']}", reason="BAD_CHECKPOINT")
        rendered = reply["text"]
        positions = [int(index) for index in _PLACEHOLDER.findall(rendered)]
        if sorted(positions) != list(range(len(texts))):
            raise FailedPrecondition(
                "The chat template must output every text of a message exactly once.", reason="BAD_CHECKPOINT"
            )
        if continues_last:
            rendered = _up_to_text(rendered, len(texts) - 1)
        return list(_pieces(rendered, texts))


def _arguments(
    messages: Sequence[ChatMessage], tools: Sequence[FunctionTool] = (), *, continues_last: bool = False
) -> dict[str, Any]:
    """Return the variables of a template."""
    return {"messages": messages, "tools": list(tools) or None, "add_generation_prompt": not continues_last}


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
