"""Serve chat completions.

A raw ASGI application: responses of Starlette would start two more tasks for each stream.
"""

import time

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chassis.errors import Cancelled, TandemError
from chassis.request_id import current_request_id
from http_gateway.chat.answer import read_answer
from http_gateway.chat.choices import Choices
from http_gateway.chat.request import ChatCall, build_call
from http_gateway.chat.stream import ChunkEncoder, EventStream, Head, error_event
from http_gateway.door import Door, until_client_leaves
from http_gateway.schemas.chat import ChatRequest
from http_gateway.wire.bodies import check_is_json, parse_json, read_body
from http_gateway.wire.caller import caller_of
from http_gateway.wire.errors import unexpected
from http_gateway.wire.json_text import encode


class ChatCompletions:
    """POST /v1/chat/completions."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            TandemError: the request was refused, or its answer failed.
        """
        door: Door = scope["app"].state.door
        settings = door.settings
        with door.bodies.reserved() as reservation:
            body = await read_body(
                scope, receive, reservation, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
            )
            check_is_json(scope)
            caller = caller_of(scope["headers"])
            chat = await parse_json(body, ChatRequest)
            del body
            async with until_client_leaves(receive, door):
                call = await build_call(chat, door)
        request_id = current_request_id() or ""
        head = Head(request_id=request_id, created=int(time.time()), model=call.model)
        async with Choices(door, call.requests(request_id), caller.metadata(call.release)) as choices:
            if call.is_streamed:
                await _stream(call, choices, head, door, receive, send)
                return
            async with until_client_leaves(receive, door):
                answer = await read_answer(choices, head, call)
        await Response(encode(answer), media_type="application/json")(scope, receive, send)


async def _stream(call: ChatCall, choices: Choices, head: Head, door: Door, receive: Receive, send: Send) -> None:
    """Stream the answer.

    An error within the answer becomes its last event, because its status was sent before.
    """
    encoder = ChunkEncoder(head, call.num_choices, include_usage=call.include_usage, tools=call.tools)
    stream = EventStream(send)
    try:
        async with until_client_leaves(receive, door):
            while (item := await choices.read()) is not None:
                await stream.write(encoder.push(*item))
    except TandemError as error:
        if stream.has_started and not isinstance(error, Cancelled):
            await stream.end(error_event(error))
        raise
    except Exception:
        if stream.has_started:
            await stream.end(error_event(unexpected(head.request_id)))
        raise
    await stream.end(encoder.end())
