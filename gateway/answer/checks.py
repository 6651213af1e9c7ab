"""Checks of what a client asks, before anything is sent anywhere. Each error names the field at fault."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from chassis.errors import InvalidArgument
from processing import ChatMessage, ImagePart, TextPart
from tandem.v1 import gateway_pb2

# Fixed by the contract.
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 128
MAX_ROUTING_KEY_CHARACTERS = 256

_ROLES: dict[int, Literal["system", "user", "assistant"]] = {
    gateway_pb2.ROLE_SYSTEM: "system",
    gateway_pb2.ROLE_USER: "user",
    gateway_pb2.ROLE_ASSISTANT: "assistant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    max_images: int
    max_text_characters: int  # of all its messages together
    max_stop_strings: int
    takes_logprobs: bool = True  # False where words are masked, which token ids would give away
    max_prompt_tokens: int = 0  # visual tokens among them; 0 leaves it to the model's context
    max_output_tokens: int = 0  # also what a request gets that names none; 0 leaves both to the language service


@dataclass(frozen=True, slots=True)
class ImageField:
    """An image of a conversation, not looked at yet."""

    path: str  # where the request has it, 'messages[0].parts[1].image'
    image: gateway_pb2.Image


@dataclass(slots=True)
class Conversation:
    """Messages as the chat template takes them, and their images in order."""

    messages: list[ChatMessage] = field(default_factory=list)
    images: list[ImageField] = field(default_factory=list)
    num_characters: int = 0


def check_options(request: gateway_pb2.GatewayGenerateRequest, limits: Limits) -> None:
    """Check what stands beside the conversation; sampling options are the language service's to check.

    Raises:
        InvalidArgument: reason 'TOO_MANY_STOP_STRINGS', 'BAD_STOP_STRING', 'BAD_ROUTING_KEY', 'ANSWER_TOO_LONG' or
            'LOGPROBS_FILTERED'.
    """
    if request.sampling.HasField("num_logprobs") and not limits.takes_logprobs:
        raise InvalidArgument(
            "Log-probabilities are not given here: they would show words that are masked.",
            reason="LOGPROBS_FILTERED",
            field="sampling.num_logprobs",
        )
    if limits.max_output_tokens and request.sampling.max_tokens > limits.max_output_tokens:
        raise InvalidArgument(
            f"An answer has at most {limits.max_output_tokens} tokens here.",
            reason="ANSWER_TOO_LONG",
            field="sampling.max_tokens",
            metadata={"max_output_tokens": str(limits.max_output_tokens)},
        )
    if len(request.stop) > limits.max_stop_strings:
        raise InvalidArgument(
            f"There are {len(request.stop)} stop strings; at most {limits.max_stop_strings} are taken.",
            reason="TOO_MANY_STOP_STRINGS",
            field="stop",
        )
    for index, stop in enumerate(request.stop):
        if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise InvalidArgument(
                f"A stop string has 1 to {MAX_STOP_CHARACTERS} characters.",
                reason="BAD_STOP_STRING",
                field=f"stop[{index}]",
            )
    if len(request.routing_key) > MAX_ROUTING_KEY_CHARACTERS:
        raise InvalidArgument(
            f"The routing key has more than {MAX_ROUTING_KEY_CHARACTERS} characters.",
            reason="BAD_ROUTING_KEY",
            field="routing_key",
        )


def check_conversation(messages: Sequence[gateway_pb2.Message], limits: Limits) -> Conversation:
    """Check a conversation and return it as plain data.

    Raises:
        InvalidArgument: reason 'NO_MESSAGES', 'BAD_ROLE', 'EMPTY_MESSAGE', 'EMPTY_PART', 'TOO_MANY_IMAGES',
            'TEXT_TOO_LONG', 'LAST_NOT_USER' or 'EMPTY_QUESTION'.
    """
    if not messages:
        raise InvalidArgument("There is no message.", reason="NO_MESSAGES", field="messages")
    conversation = Conversation()
    for index, message in enumerate(messages):
        _add_message(conversation, message, f"messages[{index}]", limits)
    _check_question(conversation.messages[-1], f"messages[{len(messages) - 1}]")
    return conversation


def _add_message(conversation: Conversation, message: gateway_pb2.Message, path: str, limits: Limits) -> None:
    role = _ROLES.get(message.role)
    if role is None:
        raise InvalidArgument("The role must be system, user or assistant.", reason="BAD_ROLE", field=f"{path}.role")
    if not message.parts:
        raise InvalidArgument("The message has no parts.", reason="EMPTY_MESSAGE", field=f"{path}.parts")
    content = [
        _add_part(conversation, part, f"{path}.parts[{index}]", limits) for index, part in enumerate(message.parts)
    ]
    conversation.messages.append({"role": role, "content": content})


def _add_part(conversation: Conversation, part: gateway_pb2.Part, path: str, limits: Limits) -> TextPart | ImagePart:
    if part.HasField("image"):
        conversation.images.append(ImageField(f"{path}.image", part.image))
        if len(conversation.images) > limits.max_images:
            raise InvalidArgument(
                f"There are more than {limits.max_images} images.",
                reason="TOO_MANY_IMAGES",
                field=f"{path}.image",
                metadata={"max_images": str(limits.max_images)},
            )
        return {"type": "image"}
    if not part.text:
        what = "The text is empty." if part.HasField("text") else "The part is neither a text nor an image."
        raise InvalidArgument(what, reason="EMPTY_PART", field=path)
    conversation.num_characters += len(part.text)
    if conversation.num_characters > limits.max_text_characters:
        raise InvalidArgument(
            f"The texts have more than {limits.max_text_characters} characters together.",
            reason="TEXT_TOO_LONG",
            field=f"{path}.text",
            metadata={"max_text_characters": str(limits.max_text_characters)},
        )
    return {"type": "text", "text": part.text}


def _check_question(message: ChatMessage, path: str) -> None:
    """Check that the turn to be answered asks something; an image alone is no question."""
    if message["role"] != "user":
        raise InvalidArgument("The last message must be the user's.", reason="LAST_NOT_USER", field=f"{path}.role")
    if not any(part["type"] == "text" and part["text"].strip() for part in message["content"]):
        raise InvalidArgument(
            "The last message asks nothing: it has no text.", reason="EMPTY_QUESTION", field=f"{path}.parts"
        )
