"""Send errors in OpenAI's form.

`code` is the reason of the error, as the gateway names it. Messages are those of `chassis.errors`, which hold no
address, path or secret.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from chassis.errors import Code, Internal, InvalidArgument, NotFound, ResourceExhausted, TandemError
from chassis.grpc_errors import from_rpc_error
from chassis.request_id import current_request_id
from http_gateway.wire.json_text import encode

STATUS_BY_CODE = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,  # nginx's: the client left
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.FAILED_PRECONDITION: 503,  # the release or a model is in the wrong state, not the request
    Code.DEADLINE_EXCEEDED: 504,
}
# Reasons that HTTP has a status of its own for.
STATUS_BY_REASON = {
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TIMEOUT": 408,
    "BODY_TOO_LARGE": 413,
    "IMAGE_TOO_LARGE": 413,
    "MESSAGE_TOO_LARGE": 413,
    "NOT_JSON": 415,
    "WRONG_HOST": 421,
}
_TYPE_BY_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    499: "cancelled_error",
}
# After these the rest of a body may still arrive, so the connection cannot be used again.
_CLOSES = frozenset({408, 413})
# Fields of the gateway's contract, by their names in JSON.
_PARAMS = {
    "routing_key": "user",
    "num_logprobs": "top_logprobs",
    "json_schema": "response_format",
    "regex": "guided_regex",
    "grammar": "tools",
}
_PART = re.compile(r"\.parts\[(\d+)\](\.image|\.text)?")


def status_of(error: TandemError) -> int:
    """Return the HTTP status of an error."""
    return STATUS_BY_REASON.get(error.reason) or STATUS_BY_CODE.get(error.code, 500)


def error_body(error: TandemError) -> dict[str, Any]:
    """Return an error as the JSON object that clients read."""
    status = status_of(error)
    kind = _TYPE_BY_STATUS.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    content = {
        "message": error.message,
        "type": kind,
        "param": _param_of(error.field),
        "code": error.reason,
        "request_id": current_request_id(),
    }
    return {"error": content}


def error_response(error: TandemError) -> Response:
    """Return the response for an error before any answer."""
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(round(error.retry_after_s * 1000))  # OpenAI's clients prefer it
    if status in _CLOSES:
        headers["connection"] = "close"
    return Response(encode(error_body(error)), status, headers, "application/json")


@contextmanager
def translated() -> Iterator[None]:
    """Raise errors of gRPC calls as errors of `chassis.errors`."""
    try:
        yield
    except grpc.RpcError as rpc_error:
        error = from_rpc_error(rpc_error)
        if isinstance(error, ResourceExhausted) and error.reason == error.code.name:  # of the gRPC library itself
            raise InvalidArgument(
                "The request is larger than the gateway takes: send fewer or smaller images.",
                reason="MESSAGE_TOO_LARGE",
            ) from rpc_error
        raise error from rpc_error


def unexpected(request_id: str) -> Internal:
    """Return the error for an exception that is a bug."""
    return Internal(f"The server failed unexpectedly: search its log for request id {request_id}.")


async def answer_http_exception(_request: Request, error: Exception) -> Response:
    """Answer a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        response = error_response(
            InvalidArgument("This path has no such method: see /openapi.json.", reason="METHOD_NOT_ALLOWED")
        )
    elif error.status_code == 404:
        response = error_response(NotFound("There is no such path: see /openapi.json.", reason="NO_SUCH_PATH"))
    else:
        response = error_response(InvalidArgument("The request is malformed.", reason="BAD_REQUEST"))
    response.headers.update(error.headers or {})
    return response


def _param_of(field: str | None) -> str | None:
    """Return the JSON name of a field of the contract."""
    if field is None:
        return None
    name = _PART.sub(r".content[\1]", field.removeprefix("sampling."))
    return _PARAMS.get(name, name.replace(".parts", ".content"))
