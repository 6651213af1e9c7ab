"""/operations/...: the calls of operators, for the page.

The gateway checks the caller's role. Bodies are the contract's messages in JSON, with its field names.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from chassis.errors import PermissionDenied
from http_gateway.door import door_of, read_json, until_client_leaves
from http_gateway.wire.caller import Caller, caller_of
from http_gateway.wire.errors import translated
from http_gateway.wire.json_text import encode
from tandem.v1 import operations_pb2, operations_pb2_grpc, rollout_pb2, rollout_pb2_grpc

_MAX_BODY_BYTES = 4096
_TIMEOUT_S = 10.0


class _Command(BaseModel):
    """Body of a command."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=256)  # for the history


class _WatchOperations:
    """GET /operations/status: the gateway at work, as server-sent events."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        door, caller = door_of(request), _operator(request)
        stub: Any = operations_pb2_grpc.OperationsStub(door.channel)
        call = stub.Watch(operations_pb2.OperationsWatchRequest(), metadata=caller.metadata())
        has_started = False
        try:
            async with until_client_leaves(receive, door):
                with translated():
                    async for status in call:
                        if not has_started:  # only now, because a refused call has a status of its own
                            has_started = True
                            await send(_START)
                        data = b"data: " + _json(status) + b"\n\n"
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                        if door.draining:  # the page comes back to another process
                            break
            if has_started:
                await send({"type": "http.response.body", "body": b""})
        finally:
            call.cancel()


_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
    ],
}


async def _promote(request: Request) -> Response:
    """POST /operations/rollout/promote: send all requests to the canary."""
    return await _change_rollout(request, "Promote", rollout_pb2.RolloutsPromoteRequest)


async def _roll_back(request: Request) -> Response:
    """POST /operations/rollout/rollback: send all new requests to the stable release."""
    return await _change_rollout(request, "Rollback", rollout_pb2.RolloutsRollbackRequest)


async def _change_rollout(request: Request, method: str, message: Callable[..., Message]) -> Response:
    """Pass a command on, and return the rollout."""
    caller = _operator(request)
    command = await read_json(request, _Command, max_bytes=_MAX_BODY_BYTES)
    call = getattr(rollout_pb2_grpc.RolloutsStub(door_of(request).channel), method)
    with translated():
        response = await call(message(reason=command.reason), metadata=caller.metadata(), timeout=_TIMEOUT_S)
    return Response(_json(response.rollout), media_type="application/json")


def _operator(request: Request) -> Caller:
    caller = caller_of(request.scope["headers"])
    door = door_of(request)
    if not door.may_operate(caller):
        if door.settings.operators:
            raise PermissionDenied("This call needs an operator's API key.", reason="NOT_OPERATOR")
        raise PermissionDenied(
            "This server passes on no calls of operators: see its setting operators.", reason="OPERATORS_OFF"
        )
    return caller


def _json(message: Message) -> bytes:
    fields = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return encode(fields)


routes: list[BaseRoute] = [
    Route("/operations/status", _WatchOperations()),
    Route("/operations/rollout/promote", _promote, methods=["POST"]),
    Route("/operations/rollout/rollback", _roll_back, methods=["POST"]),
]
