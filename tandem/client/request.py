"""Turn the arguments of a call into protobuf messages."""

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chassis.errors import InvalidArgument
from tandem.client.image_source import given_images, image_message, read_image
from tandem.client.types import GenerateOptions, Image, ImageInput, Images, Message
from tandem.v1 import gateway_pb2, sampling_pb2

CHUNK_BYTES = 1024 * 1024  # maximum of one PutImage message
_ROLES = {
    "system": gateway_pb2.ROLE_SYSTEM,
    "user": gateway_pb2.ROLE_USER,
    "assistant": gateway_pb2.ROLE_ASSISTANT,
}
# These options have no sampling option of the same name.
_NOT_SAMPLING = {"stop", "system", "routing_key", "continue_answer", "release", "request_id", "timeout_s"}

_CONSTRAINTS = {"json_schema", "regex", "choices", "grammar"}


def generate_request(
    prompt: str | Sequence[Message], images: Images, options: GenerateOptions
) -> gateway_pb2.GatewayGenerateRequest:
    """Return the request for a question or a conversation.

    Raises:
        OSError: an image's file cannot be read.
        TypeError: an option is unknown, there are several constraints, or images or instructions stand beside a
            conversation, which holds them in its turns.
        InvalidArgument: reason 'BAD_OPTION', the value of an option is of another type or out of range.
    """
    sampling: dict[str, Any] = {
        name: value for name, value in options.items() if name not in _NOT_SAMPLING and value is not None
    }
    unknown = sampling.keys() - sampling_pb2.SamplingOptions.DESCRIPTOR.fields_by_name.keys()
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    if len(sampling.keys() & _CONSTRAINTS) > 1:
        raise TypeError(f"an answer takes only one of {', '.join(sorted(_CONSTRAINTS))}")
    request = gateway_pb2.GatewayGenerateRequest(messages=messages(prompt, images, options.get("system")))
    for name, value in sampling.items():
        _set(request.sampling, name, _sampling_value(name, value), f"sampling.{name}")
    for name in ("routing_key", "continue_answer"):
        _set(request, name, options.get(name), name)
    stop = options.get("stop")
    _set(request, "stop", [stop] if isinstance(stop, str) else stop, "stop")
    return request


def _sampling_value(name: str, value: Any) -> Any:
    """Return an option's value as its field takes it."""
    match name, value:
        case "json_schema", Mapping():
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        case "choices", str():
            return {"texts": [value]}
        case "choices", list() | tuple():
            return {"texts": value}
        case "logit_bias", Mapping():
            return dict(value)
    return value


def _set(message: Any, name: str, value: Any, field: str) -> None:
    """Set a field of a message. None leaves it unset.

    Raises:
        InvalidArgument: reason 'BAD_OPTION'.
    """
    try:
        message.MergeFrom(type(message)(**{name: value}))
    except (TypeError, ValueError, AttributeError):  # of protobuf, whose messages do not name the field
        raise InvalidArgument(
            f"{name} cannot be {reprlib.repr(value)}: GenerateOptions lists what it takes.",
            reason="BAD_OPTION",
            field=field,
        ) from None


def check_size(
    request: gateway_pb2.GatewayGenerateRequest | gateway_pb2.CountTokensRequest | gateway_pb2.TokenizeRequest,
    max_bytes: int,
) -> None:
    """Check that a gateway can receive a request.

    gRPC would refuse it without a field, after it was sent.

    Raises:
        InvalidArgument: reason 'REQUEST_TOO_LARGE'. `field` names the largest image.
    """
    num_bytes = request.ByteSize()
    if num_bytes <= max_bytes:
        return
    images = {
        f"messages[{turn}].parts[{number}].image": len(part.image.data)
        for turn, message in enumerate(request.messages)
        for number, part in enumerate(message.parts)
    }
    raise InvalidArgument(
        f"The request has {num_bytes} bytes and a gateway takes {max_bytes}: upload its images with put_image, and "
        "name them by their digests.",
        reason="REQUEST_TOO_LARGE",
        field=max(images, key=lambda field: images[field], default="messages"),
        metadata={"num_bytes": str(num_bytes), "max_message_bytes": str(max_bytes)},
    )


def messages(
    prompt: str | Sequence[Message], images: Images = (), system: str | None = None
) -> list[gateway_pb2.Message]:
    """Return the turns as messages, images before the question.

    Raises:
        OSError: an image's file cannot be read.
        TypeError: images or instructions stand beside a conversation, an image is no file, or a turn is no message.
        InvalidArgument: reason 'BAD_OPTION', the instructions are no text.
    """
    given = given_images(images)
    if not isinstance(system, str | None):
        raise InvalidArgument("system must be a text.", reason="BAD_OPTION", field="system")
    if isinstance(prompt, str):
        turns = [Message("system", (system,))] if system is not None else []
        question = Message("user", (*(image if isinstance(image, Image) else Image(image) for image in given), prompt))
        return [_message(turn) for turn in (*turns, question)]
    if given or system is not None:
        raise TypeError("put images and instructions of a conversation into its messages")
    return [_message(turn) for turn in ([prompt] if isinstance(prompt, Message) else prompt)]


def tokenize_request(prompt: str | Sequence[Message]) -> gateway_pb2.TokenizeRequest:
    """Return the request for tokens of a text or conversation.

    Raises:
        OSError: an image's file cannot be read.
        TypeError: as in `messages`.
    """
    if isinstance(prompt, str):
        return gateway_pb2.TokenizeRequest(text=prompt)
    return gateway_pb2.TokenizeRequest(messages=messages(prompt))


def detokenize_request(token_ids: Sequence[int]) -> gateway_pb2.DetokenizeRequest:
    """Return the request for the text of token ids.

    Raises:
        InvalidArgument: reason 'BAD_OPTION', they are no token ids.
    """
    request = gateway_pb2.DetokenizeRequest()
    _set(request, "token_ids", token_ids, "token_ids")
    return request


def read_source(source: ImageInput) -> bytes:
    """Return the bytes of an image to upload.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is no file.
    """
    return read_image(source.source if isinstance(source, Image) else source)


def put_image_requests(source: ImageInput) -> Iterator[gateway_pb2.PutImageRequest]:
    """Return an upload of an image in chunks.

    Raises:
        OSError: the file cannot be read. It is read here because gRPC hides errors raised inside its iterator.
        TypeError: it is no file.
    """
    data = read_source(source)
    return (
        gateway_pb2.PutImageRequest(chunk=data[start : start + CHUNK_BYTES])
        for start in range(0, len(data), CHUNK_BYTES)
    )


def _message(turn: object) -> gateway_pb2.Message:
    if not isinstance(turn, Message) or turn.role not in _ROLES:
        raise TypeError("a conversation is a sequence of messages, such as user(...) returns")
    parts: Any = turn.parts
    return gateway_pb2.Message(role=_ROLES[turn.role], parts=map(_part, [parts] if isinstance(parts, str) else parts))


def _part(part: object) -> gateway_pb2.Part:
    if isinstance(part, str):
        return gateway_pb2.Part(text=part)
    return gateway_pb2.Part(image=image_message(part))
