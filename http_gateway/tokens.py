"""POST /tokenize and /detokenize: tokens of texts and conversations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chassis.errors import InvalidArgument, TandemError
from http_gateway.chat import build_messages, plan_tools, release_of
from http_gateway.door import Door, door_of, until_client_leaves
from http_gateway.schemas.base import RequestModel, ResponseModel
from http_gateway.schemas.tokens import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from http_gateway.wire.bodies import check_is_json, parse_json, read_body
from http_gateway.wire.caller import caller_of
from http_gateway.wire.errors import translated
from tandem.v1 import gateway_pb2

_TIMEOUT_S = 30.0

M = TypeVar("M", bound=RequestModel)


async def tokenize(request: Request) -> Response:
    """Return the tokens of a text or a conversation."""
    door = door_of(request)
    asked = await _read(request, door, TokenizeRequest)
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
    return _json(
        TokenizeResponse(count=len(tokens), max_model_len=found.context_length, tokens=tokens, token_strs=texts)
    )


async def detokenize(request: Request) -> Response:
    """Return the text of tokens."""
    door = door_of(request)
    asked = await _read(request, door, DetokenizeRequest)
    metadata = caller_of(request.scope["headers"]).metadata(release_of(asked.model, door.settings))
    async with until_client_leaves(request.receive, door):
        with _renamed_fields(), translated():
            found = await door.gateway.Detokenize(
                gateway_pb2.DetokenizeRequest(token_ids=asked.tokens), metadata=metadata, timeout=_TIMEOUT_S
            )
    return _json(DetokenizeResponse(prompt=found.text))


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


async def _read(request: Request, door: Door, model: type[M]) -> M:
    """Return the body of a request."""
    check_is_json(request.scope)
    with door.bodies.reserved() as reservation:
        body = await read_body(
            request.scope,
            request.receive,
            reservation,
            max_bytes=door.settings.max_body_bytes,
            timeout_s=door.settings.body_timeout_s,
        )
        return await parse_json(body, model)


def _json(model: ResponseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


routes: list[BaseRoute] = [
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]
