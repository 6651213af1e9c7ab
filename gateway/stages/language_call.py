"""One call of `LanguageService.Generate`: written and read at the same time, and honest about why it ended."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from chassis.deadline import Deadline
from gateway.stages.errors import errors_of
from tandem.v1 import language_pb2

if TYPE_CHECKING:
    from tandem.v1 import language_pb2_grpc

# What grpc.aio says in place of the server's status when a write was under way as the server ended the call
# (github.com/grpc/grpc/issues/36066).
_HIDDEN_STATUS = "Internal error from Core"
_STATUS_WAIT_S = 1.0
# What a write raises when the call is over: the last one where the connection broke in that very moment.
_TOO_LATE = (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.InternalError)

T = TypeVar("T")


class CallEndedError(Exception):
    """A write came too late: the call is over, and `read` says why."""


class LanguageCall:
    """A prompt on its way in and an answer on its way out."""

    def __init__(self, stub: "language_pb2_grpc.LanguageServiceAsyncStub", deadline: Deadline) -> None:
        """Open the call; the service sees it with the first message.

        Raises:
            Unavailable: the channel is closed.
        """
        with errors_of("language"):
            self._call: Any = stub.Generate(timeout=deadline.remaining_s())  # type: ignore[call-arg]
        self._status: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()
        self._call.add_done_callback(self._keep_status)

    async def write(self, request: language_pb2.GenerateRequest) -> None:
        """Send the next message; waits while the service is slow.

        Raises:
            CallEndedError: the call is over.
        """
        try:
            await self._call.write(request)
        except _TOO_LATE:
            raise CallEndedError from None

    async def end_prompt(self) -> None:
        """Tell that the prompt is complete.

        Raises:
            CallEndedError: the call is over.
        """
        try:
            await self._call.done_writing()
        except _TOO_LATE:
            raise CallEndedError from None

    async def read(self) -> language_pb2.GenerateResponse | None:
        """Return the next message of the answer, None when the service has closed its side.

        Raises:
            TandemError: why the call ended.
        """
        with errors_of("language"):
            try:
                response = await self._call.read()
            except grpc.aio.AioRpcError as error:
                raise await self._revealed(error) from None
        # By truth and not by grpc.aio.EOF, which the published types lack: a message is always true, EOF never.
        return response or None

    def cancel(self) -> None:
        """End the call, and free what the service holds for it, unless it has ended by itself."""
        self._call.cancel()

    def _keep_status(self, call: Any) -> None:
        """Note the status when it is set; a failed write may set one of its own before the server's, or after."""
        error = grpc.aio.AioRpcError(
            _result(call.code()),
            initial_metadata=grpc.aio.Metadata(),
            trailing_metadata=_result(call.trailing_metadata()),
            details=_result(call.details()),
            debug_error_string=None,
        )
        if error.details() != _HIDDEN_STATUS and not self._status.done():
            self._status.set_result(error)

    async def _revealed(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """Return the server's status where grpc.aio hid it behind its own."""
        if error.details() == _HIDDEN_STATUS:
            with suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(self._status), _STATUS_WAIT_S)
        return error


def _result(finished: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine gives that need not wait: those of a call that is done."""
    try:
        finished.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finished.close()
    raise RuntimeError("the call is not done")
