"""POST /v1/files: upload an image once, and name it in many requests."""

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chassis.errors import InvalidArgument, PermissionDenied
from http_gateway.door import Door, door_of, until_client_leaves
from http_gateway.schemas.models import PURPOSES, File
from http_gateway.wire.bodies import read_body
from http_gateway.wire.caller import Caller, caller_of
from http_gateway.wire.errors import translated
from http_gateway.wire.forms import Part, read_form
from http_gateway.wire.json_text import json_response
from tandem.v1 import gateway_pb2

_CHUNK_BYTES = 2**20  # of the contract
_MAX_NAME_CHARACTERS = 256


async def create_file(request: Request) -> Response:
    """Store an image, and return its digest as id."""
    door, caller = door_of(request), caller_of(request.scope["headers"])
    _check_origin(request, door)
    with door.bodies.reserved() as reservation:
        body = await read_body(
            request.scope,
            request.receive,
            reservation,
            max_bytes=door.settings.max_body_bytes,
            timeout_s=door.settings.body_timeout_s,
        )
        form = read_form(request.headers.get("content-type", ""), body)
        del body
        async with until_client_leaves(request.receive, door):
            stored = await _store(form, door, caller)
    return json_response(stored)


async def _store(form: dict[str, Part], door: Door, caller: Caller) -> File:
    """Upload the file of a form to the gateway."""
    purpose = form["purpose"].data.decode(errors="replace") if "purpose" in form else PURPOSES[0]
    if purpose not in PURPOSES:
        message = f"Files are images: set purpose to one of {', '.join(PURPOSES)}."
        raise InvalidArgument(message, reason="BAD_FIELD", field="purpose")
    upload = form.get("file")
    if upload is None or upload.filename is None:
        raise InvalidArgument("The field file, with a file name, is missing.", reason="MISSING_FIELD", field="file")
    data = bytes(upload.data)
    if not data:
        raise InvalidArgument("The image is empty.", reason="IMAGE_EMPTY", field="file")
    if len(data) > door.settings.max_image_bytes:
        raise InvalidArgument(
            f"The image has more than {door.settings.max_image_bytes} bytes, send a smaller one.",
            reason="IMAGE_TOO_LARGE",
            field="file",
        )
    with translated():
        stored = await door.gateway.PutImage(
            _chunks(data), metadata=caller.metadata(), timeout=door.settings.body_timeout_s
        )
    return File(
        id=stored.sha256.hex(),
        bytes=stored.num_bytes,
        created_at=int(time.time()),
        filename=upload.filename[:_MAX_NAME_CHARACTERS],
        purpose=purpose,
    )


def _chunks(data: bytes) -> Iterator[gateway_pb2.PutImageRequest]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield gateway_pb2.PutImageRequest(chunk=data[start : start + _CHUNK_BYTES])


def _check_origin(request: Request, door: Door) -> None:
    """Refuse pages of other origins.

    Browsers send forms to other origins without asking, so a foreign page could fill the store of a door on loopback.
    """
    origin = request.headers.get("origin")
    if origin is None or origin in door.settings.cors_origins:
        return
    if urlsplit(origin).netloc != request.headers.get("host"):
        raise PermissionDenied("Pages of another origin may not upload files.", reason="FOREIGN_ORIGIN")


routes: list[BaseRoute] = [Route("/v1/files", create_file, methods=["POST"])]
