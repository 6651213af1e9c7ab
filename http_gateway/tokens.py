"""POST /tokenize and /detokenize: tokens of texts and conversations."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chassis.errors import InvalidArgument, TandemError
from http_gateway.chat import build_messages, plan_tools, release_of
from http_gateway.door import Door, door_of, read_json, until_client_leaves
from http_gateway.schemas.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from http_gateway.wire.caller import caller_of
from http_gateway.wire.errors import translated
from http_gateway.wire.json_text import json_response
from tandem.v1 import gateway_pb2

_TIMEOUT_S = 30.0


async def tokenize(request: Request) -> Response:
    """Return the tokens of a text or a conversation."""
    door = door_of(request)
    asked = await read_json(request, TokenizeRequest)
    metadata = caller_of(request.scope["headers"]).metadata(release_of(asked.model, door.settings))
    async with until_client_leaves(request.receive, door):
        message = await _tokenize_request(asked, door)
        with _renamed_fields(), translated():
            found = await door.gateway.Tokenize(message, metadata=metadata, timeout=_TIMEOUT_S)
            texts: list[str] | None = None
            if asked.return_token_strs:
                decoded = await door.gateway.Detokenize(
                    gateway_pb2.DetokenizeRequest(token_ids=found.token_ids), metadata=metadata, timeout=_TIMEOUT_S
                )
                texts = [one.decode(errors="replace") for one in decoded.token_bytes]
    tokens = list(found.token_ids)
    return json_response(
        TokenizeResponse(count=len(tokens), max_model_len=found.context_length, tokens=tokens, token_strs=texts)
    )


async def detokenize(request: Request) -> Response:
    """Return the text of tokens."""
    door = door_of(request)
    asked = await read_json(request, DetokenizeRequest)
    metadata = caller_of(request.scope["headers"]).metadata(release_of(asked.model, door.settings))
    async with until_client_leaves(request.receive, door):
        with _renamed_fields(), translated():
            found = await door.gateway.Detokenize(
                gateway_pb2.DetokenizeRequest(token_ids=asked.tokens), metadata=metadata, timeout=_TIMEOUT_S
            )
    return json_response(DetokenizeResponse(prompt=found.text))


async def _tokenize_request(asked: TokenizeRequest, door: Door) -> gateway_pb2.TokenizeRequest:
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidArgument("Set either prompt or messages.", reason="BAD_FIELD", field="prompt")
    if asked.messages is None:
        if asked.tools:
            raise InvalidArgument("Set tools only with messages.", reason="BAD_FIELD", field="tools")
        return gateway_pb2.TokenizeRequest(text=asked.prompt or "")
    messages = await build_messages(asked.messages, door.images)
    return gateway_pb2.TokenizeRequest(messages=messages, tools=plan_tools(asked.tools, None).tools)


@contextmanager
def _renamed_fields() -> Iterator[None]:
    """Name fields in errors as this API does."""
    try:
        yield
    except TandemError as error:
        if error.field is not None:
            error.field = "prompt" if error.field == "text" else error.field.replace("token_ids", "tokens")
        raise


routes: list[BaseRoute] = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
