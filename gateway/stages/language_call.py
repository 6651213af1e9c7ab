"""One call of `LanguageService.Generate`.

A prompt of one text goes out in one step with the call. Messages of a stream would wait for each other, once in each
process. On the wire both are the same.

grpc.aio may hide the server's status when a call ends during a write. `LanguageCall` restores it.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from chassis.deadline import Deadline
from gateway.stages.errors import translate_errors
from tandem.v1 import language_pb2, language_pb2_grpc

# grpc.aio reports this in place of the server's status if the server ends the call during a write
# (github.com/grpc/grpc/issues/36066).
_MASKED_STATUS = "Internal error from Core"
_STATUS_TIMEOUT_S = 1.0

# Raised by a write after the end of the call. InternalError means that the connection broke at that moment.
_CALL_ENDED = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.InternalError)

# The generated class is one for both kinds of channels, and its types are two.
if TYPE_CHECKING:
    _GeneratedStub = language_pb2_grpc.LanguageServiceAsyncStub
else:
    _GeneratedStub = language_pb2_grpc.LanguageServiceStub

_GENERATE = "/tandem.v1.LanguageService/Generate"

T = TypeVar("T")


class LanguageStub(_GeneratedStub):
    """The stub of the language stage, with `GenerateWhole`.

    `GenerateWhole` is `Generate` for a single message.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.GenerateWhole: Any = channel.unary_stream(
            _GENERATE,
            request_serializer=language_pb2.GenerateRequest.SerializeToString,
            response_deserializer=language_pb2.GenerateResponse.FromString,
        )


class CallEndedError(Exception):
    """The call ended before a write. `read` raises the reason."""


class LanguageCall:
    """A call that writes a prompt while reading its answer."""

    def __init__(
        self, stub: LanguageStub, deadline: Deadline, whole: language_pb2.GenerateRequest | None = None
    ) -> None:
        """Open the call.

        The service sees it with the first message.

        Args:
            stub: of the replica.
            deadline: of the request.
            whole: the prompt, if it is a single message. Nothing is written then.

        Raises:
            Unavailable: the channel is closed.
        """
        with translate_errors("language"):
            timeout_s = deadline.remaining_s()
            self._call: Any = (
                stub.Generate(timeout=timeout_s)  # type: ignore[call-arg]
                if whole is None
                else stub.GenerateWhole(whole, timeout=timeout_s)
            )
        self._status: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        self._call.add_done_callback(self._record_status)

    async def write(self, request: language_pb2.GenerateRequest) -> None:
        """Send the next message. Wait while the service applies back-pressure.

        Raises:
            CallEndedError: the call has ended.
        """
        try:
            await self._call.write(request)
        except _CALL_ENDED:
            raise CallEndedError from None

    async def end_prompt(self) -> None:
        """Close the writing side: the prompt is complete.

        Raises:
            CallEndedError: the call has ended.
        """
        try:
            await self._call.done_writing()
        except _CALL_ENDED:
            raise CallEndedError from None

    async def read(self) -> language_pb2.GenerateResponse | None:
        """Return the answer's next message, None at its end.

        Raises:
            TandemError: the reason for the end of the call.
        """
        with translate_errors("language"):
            try:
                response = await self._call.read()
            except grpc.aio.AioRpcError as error:
                raise await self._server_status(error) from None
        # The published types lack grpc.aio.EOF. EOF is false, a message is always true.
        return response or None

    def cancel(self) -> None:
        """Cancel the call unless it has ended.

        The service then frees its resources.
        """
        self._call.cancel()

    def _record_status(self, call: Any) -> None:
        """Record the server's status when the call ends.

        A failed write may set a status of its own, before or after the server's. That one is ignored.
        """
        error = grpc.aio.AioRpcError(
            _result(call.code()),
            initial_metadata=grpc.aio.Metadata(),
            trailing_metadata=_result(call.trailing_metadata()),
            details=_result(call.details()),
            debug_error_string=None,
        )
        if error.details() != _MASKED_STATUS and not self._status.done():
            self._status.set_result(error)

    async def _server_status(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Return the server's status if grpc.aio masked it, else `error`."""
        if error.details() == _MASKED_STATUS:
            with suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(self._status), _STATUS_TIMEOUT_S)
        return error


def _result(finished: Coroutine[Any, Any, T]) -> T:
    """Return a coroutine's result without waiting.

    The coroutines of an ended call return at once.
    """
    try:
        finished.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finished.close()
    raise RuntimeError("the call has not ended")
