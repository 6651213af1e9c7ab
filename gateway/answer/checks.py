"""Check requests before they reach a stage.

Every error names the field at fault.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from chassis.errors import InvalidArgument
from gateway.answer.tool_checks import MAX_TOOLS, read_tool_calls, read_tools
from processing import ChatMessage, FunctionTool, ImagePart, TextPart
from tandem.v1 import gateway_pb2

# Fixed by the contract.
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 128
MAX_ROUTING_KEY_CHARACTERS = 256
MAX_MESSAGES = 1024
MAX_PARTS = 1024  # of all messages together

_ROLES: dict[int, Literal["system", "user", "assistant", "tool"]] = {
    gateway_pb2.ROLE_SYSTEM: "system",
    gateway_pb2.ROLE_USER: "user",
    gateway_pb2.ROLE_ASSISTANT: "assistant",
    gateway_pb2.ROLE_TOOL: "tool",
}

# Characters of pasted text that stand for a line break, and those that stand for nothing (C1).
_CLEANED = {0x0B: "\n", 0x0C: "\n", 0x85: "\n"} | dict.fromkeys({*range(0x80, 0xA0)} - {0x85})
# Their messages are taken as they were produced, because their client could not mend them.
_PRODUCERS = ("assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one request."""

    max_images: int
    max_text_characters: int  # of all messages together
    max_stop_strings: int
    allow_logprobs: bool = True  # False where words are masked: token ids would reveal them
    max_prompt_tokens: int = 0  # includes visual tokens. 0 leaves it to the model's context
    max_output_tokens: int = 0  # and the default. 0 leaves both to the language service


@dataclass(frozen=True, slots=True)
class ImageField:
    """An image of a conversation, not checked yet."""

    field: str  # its place in the request: 'messages[0].parts[1].image'
    image: gateway_pb2.Image


@dataclass(slots=True)
class Conversation:
    """Messages for the chat template, with their images in order."""

    messages: list[ChatMessage] = field(default_factory=list)
    images: list[ImageField] = field(default_factory=list)
    tools: list[FunctionTool] = field(default_factory=list)
    continues_last: bool = False  # the answer continues the last message
    num_characters: int = 0  # tools included

    def add_characters(self, number: int, place: str, limits: Limits) -> None:
        """Count characters of a text.

        Raises:
            InvalidArgument: reason 'TEXT_TOO_LONG'.
        """
        self.num_characters += number
        if self.num_characters > limits.max_text_characters:
            raise InvalidArgument(
                f"Shorten the texts to at most {limits.max_text_characters} characters together.",
                reason="TEXT_TOO_LONG",
                field=place,
                metadata={"max_text_characters": str(limits.max_text_characters)},
            )


def check_options(request: gateway_pb2.GatewayGenerateRequest, limits: Limits) -> None:
    """Check every option except those the language service checks.

    Raises:
        InvalidArgument: reason 'TOO_MANY_STOP_STRINGS', 'BAD_STOP_STRING', 'BAD_ROUTING_KEY', 'ANSWER_TOO_LONG' or
            'LOGPROBS_FILTERED'.
    """
    if request.sampling.HasField("num_logprobs") and not limits.allow_logprobs:
        raise InvalidArgument(
            "This gateway masks words, which log-probabilities would reveal: leave num_logprobs unset.",
            reason="LOGPROBS_FILTERED",
            field="sampling.num_logprobs",
        )
    if limits.max_output_tokens and request.sampling.max_tokens > limits.max_output_tokens:
        raise InvalidArgument(
            f"Set max_tokens to at most {limits.max_output_tokens}, the limit of this gateway.",
            reason="ANSWER_TOO_LONG",
            field="sampling.max_tokens",
            metadata={"max_output_tokens": str(limits.max_output_tokens)},
        )
    _check_stop_strings(request.stop, limits)
    if len(request.routing_key) > MAX_ROUTING_KEY_CHARACTERS:
        raise InvalidArgument(
            f"Shorten the routing key to at most {MAX_ROUTING_KEY_CHARACTERS} characters.",
            reason="BAD_ROUTING_KEY",
            field="routing_key",
        )


def _check_stop_strings(stops: Sequence[str], limits: Limits) -> None:
    if len(stops) > limits.max_stop_strings:
        raise InvalidArgument(
            f"There are {len(stops)} stop strings: send at most {limits.max_stop_strings}.",
            reason="TOO_MANY_STOP_STRINGS",
            field="stop",
        )
    for index, stop in enumerate(stops):
        if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise InvalidArgument(
                f"A stop string must have 1 to {MAX_STOP_CHARACTERS} characters, not {len(stop)}.",
                reason="BAD_STOP_STRING",
                field=f"stop[{index}]",
            )


def check_conversation(
    messages: Sequence[gateway_pb2.Message],
    limits: Limits,
    tools: Sequence[gateway_pb2.Tool] = (),
    *,
    continues_last: bool = False,
) -> Conversation:
    """Check a conversation and return it as plain data.

    Args:
        messages: the turns.
        limits: of the request.
        tools: that the model may call.
        continues_last: the answer continues the last turn, so that is the model's.

    Raises:
        InvalidArgument: reason 'NO_MESSAGES', 'TOO_MANY_PARTS', 'BAD_ROLE', 'EMPTY_MESSAGE', 'EMPTY_PART',
            'TOO_MANY_IMAGES', 'TEXT_TOO_LONG', 'LAST_NOT_USER', 'EMPTY_QUESTION', 'NOTHING_TO_CONTINUE', 'BAD_TOOL',
            'BAD_TOOL_CALL' or 'BAD_TOOL_RESULT'.
    """
    if not messages:
        raise InvalidArgument(
            "The conversation is empty: send at least one message.", reason="NO_MESSAGES", field="messages"
        )
    _check_numbers(messages)
    conversation = Conversation(continues_last=continues_last)
    num_characters = sum(len(tool.description) + len(tool.parameters) for tool in tools[: MAX_TOOLS + 1])
    conversation.add_characters(num_characters, "tools", limits)
    conversation.tools = read_tools(tools)
    for index, message in enumerate(messages):
        _add_message(conversation, message, f"messages[{index}]", limits)
    check_last = _check_continued if continues_last else _check_last_message
    check_last(conversation.messages[-1], f"messages[{len(messages) - 1}]")
    return conversation


def _check_numbers(messages: Sequence[gateway_pb2.Message]) -> None:
    """Check the numbers of messages and parts.

    Each costs time.
    """
    num_parts = sum(len(message.parts) for message in messages[: MAX_MESSAGES + 1])
    for limit, number, name in ((MAX_MESSAGES, len(messages), "messages"), (MAX_PARTS, num_parts, "parts")):
        if number > limit:
            raise InvalidArgument(
                f"There are {number} {name}: send at most {limit}.",
                reason="TOO_MANY_PARTS",
                field="messages",
                metadata={f"max_{name}": str(limit)},
            )


def _add_message(conversation: Conversation, message: gateway_pb2.Message, place: str, limits: Limits) -> None:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgument(
            "The role must be system, user, assistant or tool.", reason="BAD_ROLE", field=f"{place}.role"
        )
    num_characters = sum(len(call.arguments) for call in message.tool_calls)
    conversation.add_characters(num_characters, f"{place}.tool_calls", limits)
    calls = read_tool_calls(message, place)
    if not message.parts and role not in _PRODUCERS:
        raise InvalidArgument(
            "The message is empty: give it a text or an image.", reason="EMPTY_MESSAGE", field=f"{place}.parts"
        )
    if role == "tool":
        _check_follows_call(conversation, place)
    content = [
        _add_part(conversation, part, f"{place}.parts[{index}]", limits, is_produced=role in _PRODUCERS)
        for index, part in enumerate(message.parts)
    ]
    conversation.messages.append({"role": role, "content": content})
    if calls:
        conversation.messages[-1]["tool_calls"] = calls


def _check_follows_call(conversation: Conversation, place: str) -> None:
    """Check that a result follows the calls, or another result."""
    before = conversation.messages[-1:]
    if not any(message["role"] == "tool" or message.get("tool_calls") for message in before):
        raise InvalidArgument(
            "A tool's result must follow the message that calls the tool.",
            reason="BAD_TOOL_RESULT",
            field=f"{place}.role",
        )


def _add_part(
    conversation: Conversation, part: gateway_pb2.Part, place: str, limits: Limits, *, is_produced: bool
) -> TextPart | ImagePart:
    if part.HasField("image"):
        conversation.images.append(ImageField(f"{place}.image", part.image))
        if len(conversation.images) > limits.max_images:
            raise InvalidArgument(
                f"There are more than {limits.max_images} images, the limit of this gateway: send fewer.",
                reason="TOO_MANY_IMAGES",
                field=f"{place}.image",
                metadata={"max_images": str(limits.max_images)},
            )
        return {"type": "image"}
    if not part.text and not is_produced:
        raise InvalidArgument("The part is empty: give it a text or an image.", reason="EMPTY_PART", field=place)
    conversation.add_characters(len(part.text), f"{place}.text", limits)
    return {"type": "text", "text": part.text if is_produced else part.text.translate(_CLEANED)}


def _check_last_message(message: ChatMessage, place: str) -> None:
    """Check that the last message is a question or result."""
    if message["role"] == "tool":
        return
    if message["role"] != "user":
        raise InvalidArgument(
            "The last message must have the role user or tool.", reason="LAST_NOT_USER", field=f"{place}.role"
        )
    if not any(part["type"] == "text" and part["text"].strip() for part in message["content"]):
        raise InvalidArgument(
            "The last message has no text: ask a question in it.", reason="EMPTY_QUESTION", field=f"{place}.parts"
        )


def _check_continued(message: ChatMessage, place: str) -> None:
    """Check that the last message is the model's text."""
    ends_with_text = bool(message["content"]) and message["content"][-1]["type"] == "text"
    if message["role"] != "assistant" or message.get("tool_calls") or not ends_with_text:
        raise InvalidArgument(
            "An answer continues a last message of the assistant that ends with a text.",
            reason="NOTHING_TO_CONTINUE",
            field=place,
        )
