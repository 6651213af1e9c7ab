"""Read the requests of RPCs: caller first, then bounded messages."""

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from chassis.elements import check_elements
from chassis.errors import InvalidArgument
from chassis.metrics import RPC_UNREAD
from chassis.native_library import return_free_memory
from chassis.receiving import ReceiveBudget
from chassis.sender import Sender

# Health checks and reflection are open to strangers. They have a place of their own, and small requests. gRPC takes
# three times the memory of the largest message while it reads one, so there is one place, and a short turn.
_PUBLIC_PREFIX = "grpc."
_NUM_PUBLIC_PLACES = 1
_PUBLIC_PATIENCE_S = 1.0
_MAX_PUBLIC_BYTES = 4096

_EOF: object = grpc.aio.EOF  # type: ignore[attr-defined]  # missing from the published types

_log = structlog.get_logger()

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods
# Takes the name of a method and its call. Returns the caller's name, or raises Unauthenticated or PermissionDenied.
CheckCaller = Callable[[str, Context], str]


class RequestReaders:
    """Creates the reader of each method of a server."""

    def __init__(self, *, max_message_bytes: int, max_receiving_bytes: int, receive_timeout_s: float) -> None:
        """Start without services.

        Args:
            max_message_bytes: largest message.
            max_receiving_bytes: room for all messages that arrive at once. There is always room for two.
            receive_timeout_s: longest time for one message to arrive.
        """
        num_places = max(2, max_receiving_bytes // max_message_bytes)
        self._budget = ReceiveBudget(num_places=num_places, timeout_s=receive_timeout_s)
        self._public_budget = ReceiveBudget(
            num_places=_NUM_PUBLIC_PLACES, timeout_s=receive_timeout_s, patience_s=_PUBLIC_PATIENCE_S
        )
        self._checks: dict[str, CheckCaller] = {}

    def add_service(self, name: str, check_caller: CheckCaller | None) -> None:
        """Set how requests are read, see `Server.announce`."""
        if check_caller is not None:
            self._checks[name] = check_caller

    def reader_of(self, method: str, handler: Any) -> "RequestReader":
        """Return the reader of a method.

        Args:
            method: 'tandem.v1.Gateway/Generate'.
            handler: its handler, which says how a message is parsed.
        """
        service = method.rpartition("/")[0]
        is_public = method.startswith(_PUBLIC_PREFIX)
        return RequestReader(
            method,
            handler,
            budget=self._public_budget if is_public else self._budget,
            check_caller=self._checks.get(service),
            # A method that answers while it reads may wait for long between messages. It takes room for the first one
            # only, and limits its calls itself.
            pauses=handler.request_streaming and handler.response_streaming and not is_public,
            max_bytes=_MAX_PUBLIC_BYTES if is_public else None,
        )


class RequestReader:
    """Reads the requests of one method."""

    def __init__(
        self,
        method: str,
        handler: Any,
        *,
        budget: ReceiveBudget,
        check_caller: CheckCaller | None,
        pauses: bool,
        max_bytes: int | None,
    ) -> None:
        self._method = method
        self._name = method.rpartition("/")[2]
        self._is_streaming: bool = handler.request_streaming
        self._deserialize: Callable[[bytes], Any] = handler.request_deserializer
        # Of generated code, this is the method of a message class.
        self._kind: Descriptor | None = getattr(
            getattr(handler.request_deserializer, "__self__", None), "DESCRIPTOR", None
        )
        self._budget = budget
        self._check_caller = check_caller
        self._max_bytes = max_bytes
        self._pauses = pauses

    def sender(self, context: Context) -> Sender:
        """Check a caller, and return who it is.

        Raises:
            Unauthenticated, PermissionDenied: the caller is refused.
        """
        caller = self._check_caller(self._name, context) if self._check_caller is not None else ""
        return Sender.of(context.peer(), caller)

    async def open(self, context: Context, sender: Sender) -> Any:
        """Return the request or requests of a checked caller.

        Nothing is read of a caller that is refused, so its message takes no memory.

        Raises:
            TandemError: the request cannot be read.
        """
        if self._is_streaming:
            return _Requests(self, context, sender)
        data = await self.receive(context, sender)
        if data is _EOF:
            RPC_UNREAD.labels(self._method).inc()
            # gRPC refuses a message above the limit by itself, and says so to the client alone.
            _log.info("request not received, because it is too large or its client left", method=self._method)
            raise InvalidArgument(
                "The request was not received: it is too large, or its client left.", reason="NO_MESSAGE"
            )
        return self.parse(data)

    async def receive(self, context: Context, sender: Sender, *, is_first: bool = True) -> Any:
        """Return the bytes of the next message, or `grpc.aio.EOF`.

        Raises:
            ResourceExhausted, DeadlineExceeded: see `ReceiveBudget.receive`.
            InvalidArgument: reason 'REQUEST_TOO_LARGE'.
        """
        if self._pauses and not is_first:
            return await context.read()
        read = context.read if self._max_bytes is None else partial(self._read_small, context, sender)
        return await self._budget.receive(read, sender)

    async def _read_small(self, context: Context, sender: Sender) -> Any:
        """Read a message with a limit of its own.

        A larger one and its memory are gone before the next one is read, and its sender waits.
        """
        data = await context.read()
        assert self._max_bytes is not None
        if data is _EOF:
            return data
        if len(data) <= self._max_bytes:
            self._budget.accept(sender)
            return data
        self._budget.pause(sender)
        num_bytes = len(data)
        del data
        return_free_memory()
        raise InvalidArgument(
            f"The request has {num_bytes} bytes: send at most {self._max_bytes}.", reason="REQUEST_TOO_LARGE"
        )

    def parse(self, data: bytes) -> Any:
        """Return the message of its bytes.

        gRPC itself would answer INTERNAL for a malformed one.

        Raises:
            InvalidArgument: reason 'BAD_MESSAGE' or 'TOO_MANY_ELEMENTS'.
        """
        if self._kind is not None:
            check_elements(data, self._kind)
        try:
            return self._deserialize(data)
        except (DecodeError, ValueError) as error:
            message = "The request cannot be parsed: send a message of this method, with text in UTF-8."
            raise InvalidArgument(message, reason="BAD_MESSAGE") from error


class _Requests:
    """The messages of a client stream, as an async iterator."""

    def __init__(self, reader: RequestReader, context: Context, sender: Sender) -> None:
        self._reader = reader
        self._context = context
        self._sender = sender
        self._is_first = True

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Any:
        data = await self._reader.receive(self._context, self._sender, is_first=self._is_first)
        self._is_first = False
        if data is _EOF:
            raise StopAsyncIteration
        return self._reader.parse(data)
