"""Read request bodies within bounds of size, time and memory."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope

from chassis.errors import Cancelled, InvalidArgument, ResourceExhausted
from http_gateway.wire.caller import values_of
from http_gateway.wire.problems import as_invalid_argument

# A client that sends a body too large reads the response only after its last byte. So this much more is discarded.
DISCARDED_BYTES = 64 * 2**20
_DISCARDING_S = 5.0
# Larger bodies are parsed on a thread, so that others do not wait for them.
_PARSE_INLINE_BYTES = 256 * 2**10

M = TypeVar("M", bound=BaseModel)


class BodyBudget:
    """Counts the bytes of all bodies in memory."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    @contextmanager
    def reserved(self) -> "Iterator[Reservation]":
        """Yield a reservation that ends with the block."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self._num_bytes -= reservation.num_bytes

    def take(self, num_bytes: int) -> None:
        """Count bytes that arrived.

        Raises:
            ResourceExhausted: reason 'BODIES_BUSY'.
        """
        if self._num_bytes + num_bytes > self._max_bytes:
            raise ResourceExhausted(
                "Too many large requests arrive at once: retry later.", reason="BODIES_BUSY", retry_after_s=1
            )
        self._num_bytes += num_bytes


class Reservation:
    """The bytes of one body."""

    def __init__(self, budget: BodyBudget) -> None:
        self.num_bytes = 0
        self._budget = budget

    def add(self, num_bytes: int) -> None:
        """Count more bytes, see `BodyBudget.take`."""
        self._budget.take(num_bytes)
        self.num_bytes += num_bytes


async def read_body(
    scope: Scope, receive: Receive, reservation: Reservation, *, max_bytes: int, timeout_s: float
) -> bytes:
    """Return the whole body of a request.

    Args:
        scope: the request.
        receive: its ASGI channel.
        reservation: counts the bytes while they are held.
        max_bytes: largest body. A larger one is refused by its header, before it is read.
        timeout_s: longest time for it to arrive.

    Raises:
        InvalidArgument: reason 'BODY_TOO_LARGE' or 'BODY_TIMEOUT'.
        ResourceExhausted: reason 'BODIES_BUSY'.
        Cancelled: reason 'CLIENT_LEFT'.
    """
    announced = _announced_bytes(scope)
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(receive, reservation, max_bytes) if announced <= max_bytes else None
    except TimeoutError:
        message = f"The request's body did not arrive within {timeout_s:g} s: send it again."
        raise InvalidArgument(message, reason="BODY_TIMEOUT") from None
    if body is None:
        if announced <= max_bytes + DISCARDED_BYTES:
            await _discard(receive)
        raise InvalidArgument(
            f"The request's body is larger than {max_bytes} bytes: send fewer or smaller images.",
            reason="BODY_TOO_LARGE",
        )
    return body


async def parse_json(body: bytes, model: type[M]) -> M:
    """Return a JSON body as a model.

    Raises:
        InvalidArgument: the body is not JSON, or does not fit the model. `field` names the place.
    """
    try:
        if len(body) <= _PARSE_INLINE_BYTES:
            return model.model_validate_json(body)
        return await asyncio.to_thread(model.model_validate_json, body)
    except ValidationError as error:
        raise as_invalid_argument(error, model.model_fields) from None


def check_is_json(scope: Scope) -> None:
    """Check the content type of a request.

    Browsers send JSON to another origin only if that origin allows it. Other types they send unasked, so a foreign page
    could use a door on loopback.

    Raises:
        InvalidArgument: reason 'NOT_JSON'.
    """
    kinds = values_of(scope["headers"], b"content-type")
    if len(kinds) != 1 or kinds[0].split(b";")[0].strip().lower() != b"application/json":
        raise InvalidArgument("Send JSON, with 'content-type: application/json'.", reason="NOT_JSON")


async def _read(receive: Receive, reservation: Reservation, max_bytes: int) -> bytes | None:
    """Return the body, or None if it is too large."""
    chunks = []
    more = True
    while more:
        chunk, more = await _next_chunk(receive)
        if reservation.num_bytes + len(chunk) > max_bytes:
            return None
        reservation.add(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


async def _discard(receive: Receive) -> None:
    """Read and drop the rest of a short body."""
    num_bytes, more = 0, True
    try:
        async with asyncio.timeout(_DISCARDING_S):
            while more and num_bytes < DISCARDED_BYTES:
                chunk, more = await _next_chunk(receive)
                num_bytes += len(chunk)
    except TimeoutError:
        return


async def _next_chunk(receive: Receive) -> tuple[bytes, bool]:
    """Return the next bytes, and whether more follow."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Cancelled("The client left before the end of its request.", reason="CLIENT_LEFT")
    return message.get("body", b""), message.get("more_body", False)


def _announced_bytes(scope: Scope) -> int:
    """Return the content length, 0 if the body is chunked."""
    lengths = values_of(scope["headers"], b"content-length")
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0
