"""Read small JSON bodies within the limits of the door."""

from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from http_gateway.door.state import door_of
from http_gateway.wire.bodies import check_is_json, parse_json, read_body

M = TypeVar("M", bound=BaseModel)


async def read_json(request: Request, model: type[M], *, max_bytes: int | None = None) -> M:
    """Return the body of a request as a model.

    Args:
        request: with a JSON body that nobody has read.
        model: of the body.
        max_bytes: largest body, None for the door's own limit.

    Raises:
        TandemError: see `check_is_json`, `read_body` and `parse_json`.
    """
    door = door_of(request)
    check_is_json(request.scope)
    with door.bodies.reserved() as reservation:
        body = await read_body(
            request.scope,
            request.receive,
            reservation,
            max_bytes=door.settings.max_body_bytes if max_bytes is None else max_bytes,
            timeout_s=door.settings.body_timeout_s,
        )
        return await parse_json(body, model)
