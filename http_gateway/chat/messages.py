"""Turn messages of a request into those of the gateway's contract."""

from collections.abc import Sequence

from chassis.errors import InvalidArgument
from http_gateway.images import ImageReader, RequestImages
from http_gateway.schemas.messages import Message, Part, TextPart
from tandem.v1 import gateway_pb2

_ROLES = {
    "system": gateway_pb2.ROLE_SYSTEM,
    "developer": gateway_pb2.ROLE_SYSTEM,
    "user": gateway_pb2.ROLE_USER,
    "assistant": gateway_pb2.ROLE_ASSISTANT,
    "tool": gateway_pb2.ROLE_TOOL,
}


async def build_messages(messages: Sequence[Message], images: ImageReader) -> list[gateway_pb2.Message]:
    """Return the messages in the form of the contract.

    Their images share the limits of one request.

    Results of calls follow in the order of the calls, because the prompt has no ids.

    Raises:
        InvalidArgument: reason 'BAD_TOOL_CALL' or 'BAD_TOOL_RESULT'.
        TandemError: an image cannot be read. `field` names its place.
    """
    with images.for_request() as own:
        return await _build(messages, own)


async def _build(messages: Sequence[Message], images: RequestImages) -> list[gateway_pb2.Message]:
    built: list[gateway_pb2.Message] = []
    calls: list[str] = []  # ids of the last calls
    results: dict[int, gateway_pb2.Message] = {}  # by the number of their call
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        if message.role == "tool":
            number = _number_of_call(message, calls, results, place)
            results[number] = await _message(message, place, images)
            continue
        if message.tool_call_id is not None:
            raise _bad("Only a tool's result has a tool_call_id.", "BAD_TOOL_RESULT", f"{place}.tool_call_id")
        built += [results[number] for number in sorted(results)]
        results = {}
        calls = [call.id for call in message.tool_calls or ()]
        if len(set(calls)) < len(calls):
            raise _bad("Two calls have the same id.", "BAD_TOOL_CALL", f"{place}.tool_calls")
        built.append(await _message(message, place, images))
    return built + [results[number] for number in sorted(results)]


def _number_of_call(message: Message, calls: Sequence[str], results: dict[int, gateway_pb2.Message], place: str) -> int:
    """Return the number of a result's call."""
    if message.tool_call_id not in calls:
        raise _bad(
            "A tool's result follows the message with its call, and has its id as tool_call_id.",
            "BAD_TOOL_RESULT",
            f"{place}.tool_call_id",
        )
    number = calls.index(message.tool_call_id)
    if number in results:
        raise _bad("This call has a result already.", "BAD_TOOL_RESULT", f"{place}.tool_call_id")
    return number


async def _message(message: Message, place: str, images: RequestImages) -> gateway_pb2.Message:
    content = message.content
    if isinstance(content, str):
        is_produced = message.role in ("assistant", "tool")  # and may be empty
        parts = [] if is_produced and not content else [gateway_pb2.Part(text=content)]
    else:
        parts = [await _part(part, f"{place}.content[{index}]", images) for index, part in enumerate(content or ())]
    calls = [
        gateway_pb2.ToolCall(name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
    ]
    return gateway_pb2.Message(role=_ROLES[message.role], parts=parts, tool_calls=calls)


async def _part(part: Part, place: str, images: RequestImages) -> gateway_pb2.Part:
    if isinstance(part, TextPart):
        return gateway_pb2.Part(text=part.text)
    return gateway_pb2.Part(image=await images.read(part.image_url.url, f"{place}.image_url"))


def _bad(message: str, reason: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason, field=field)
