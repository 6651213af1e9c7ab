"""Server interceptor: request ids, error mapping, metrics, spans and log lines."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from inspect import isasyncgenfunction
from typing import Any

import grpc
import structlog

from chassis.cancellation import is_asked_to_stop
from chassis.errors import Internal, TandemError, Unavailable, Unimplemented
from chassis.grpc_errors import to_grpc_status
from chassis.metrics import RPC_IN_FLIGHT, RPC_REQUESTS, RPC_SECONDS
from chassis.network import peer_host
from chassis.request_id import REQUEST_ID_HEADER, bound_request_id, current_request_id, request_id_of
from chassis.request_reader import RequestReader, RequestReaders
from chassis.sending import ClientStalled, Sending
from chassis.spans import Span
from chassis.tracing import NO_SPAN, parent_of, span

# RPCs that kubelets, load balancers and gateways poll or keep open. They are logged at debug level only, get no span,
# do not count as in flight, and draining neither refuses them nor waits for them.
_BACKGROUND_METHODS = re.compile(r"grpc\.(health|reflection)\..*|.*/ListModels|.*/Watch")
_SERVER_FAULTS = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS})

# The client's deadline starts when it sends and ours when we read. So its cancellation can arrive before our deadline.
_DEADLINE_TOLERANCE_S = 0.05

_log = structlog.get_logger()

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods
MethodHandler = Any  # grpc.RpcMethodHandler, which is generic in its published type but not at run time
Handler = Callable[[Context], Awaitable[Any]]


class CallsInFlight:
    """Counts RPCs in flight, for draining."""

    def __init__(self) -> None:
        self.draining = False  # True refuses new RPCs
        self.idle = asyncio.Event()
        self.idle.set()
        self._count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one RPC until the block ends."""
        self._count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self.idle.set()


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Wraps every handler of a server.

    A handler raises a TandemError to fail the RPC with that status. Any other exception is a bug: the client gets
    INTERNAL with the request id, and the log gets the traceback. Handlers are `async` and send no initial metadata.
    """

    def __init__(self, in_flight: CallsInFlight, readers: RequestReaders, sending: Sending) -> None:
        self._in_flight = in_flight
        self._readers = readers
        self._sending = sending
        self._wrapped: dict[str, MethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler, or None for an unknown method.

        gRPC itself answers an unknown method with UNIMPLEMENTED.
        """
        path = handler_call_details.method
        if path not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[path] = self._wrap(path.removeprefix("/"), handler)
        return self._wrapped[path]

    def _wrap(self, method: str, handler: Any) -> MethodHandler:
        reader = self._readers.reader_of(method, handler)
        adapted = _adapt(handler, reader, self._sending)
        background = _BACKGROUND_METHODS.fullmatch(method) is not None
        service, _, name = method.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

        async def run(context: Context) -> Any:
            metadata = context.invocation_metadata()
            with (
                bound_request_id(request_id_of(metadata)),
                NO_SPAN if background else span(method, "server", attributes, _parent(context)) as rpc_span,
                _RpcRecord(method, background, rpc_span) as record,
            ):
                if background:
                    return await _run_or_abort(adapted, context, record)
                if self._in_flight.draining:
                    return await _run_or_abort(_refuse, context, record)
                with self._in_flight.counted():
                    return await _run_or_abort(adapted, context, record)

        async def handle(_unread: Any, context: Context) -> Any:
            try:
                return await run(context)
            except _UnsentError as error:
                unsent = error
            # The call has ended for everybody but gRPC.
            with self._sending.stalled(unsent.caller):
                return await unsent.abort()  # raises

        # gRPC would receive a single request before it calls the handler. It leaves a stream to the handler, which then
        # decides who may send a message, and when. On the wire both are the same.
        streaming = handler.response_streaming
        make = grpc.stream_stream_rpc_method_handler if streaming else grpc.stream_unary_rpc_method_handler
        return make(handle, None, handler.response_serializer)


class _UnsentError(Exception):
    """A failed call whose status waits behind a response."""

    def __init__(self, caller: str, abort: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self.caller = caller
        self.abort = abort  # sends the status, and waits for that


class _RpcRecord:
    """Records one finished RPC in metrics, log and span."""

    def __init__(self, method: str, background: bool, rpc_span: Span) -> None:
        self.code = grpc.StatusCode.OK
        self.log_fields: dict[str, str] = {}  # further fields of the log line
        self._method = method
        self._background = background
        self._span = rpc_span

    def __enter__(self) -> "_RpcRecord":
        self._started = time.perf_counter()
        if not self._background:
            RPC_IN_FLIGHT.labels(self._method).inc()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        if not self._background:
            RPC_IN_FLIGHT.labels(self._method).dec()
        RPC_REQUESTS.labels(self._method, self.code.name).inc()
        RPC_SECONDS.labels(self._method).observe(seconds)
        self._span.set_attributes({"rpc.grpc.status_code": self.code.value[0]})
        if self.code in _SERVER_FAULTS:
            self._span.fail(self.code.name)
        _level(self.code, self._background)(
            "rpc", method=self._method, code=self.code.name, duration_ms=round(seconds * 1000, 3), **self.log_fields
        )


def _level(code: grpc.StatusCode, background: bool) -> Callable[..., None]:
    log: structlog.typing.FilteringBoundLogger = _log
    if code in _SERVER_FAULTS:
        return log.error
    return log.debug if background else log.info


async def _run_or_abort(handler: Handler, context: Context, record: _RpcRecord) -> Any:
    """Run `handler`, and turn its exception into the RPC's status."""
    try:
        return await handler(context)
    except TandemError as raised:
        error = raised
    except asyncio.CancelledError:
        if is_asked_to_stop():
            remaining = context.time_remaining()
            expired = remaining is not None and remaining <= _DEADLINE_TOLERANCE_S
            record.code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        error = _log_bug()  # something that the handler awaited was cancelled. The client still waits
    except grpc.aio.AbortError:
        record.code = context.code()
        raise
    except NotImplementedError:
        # Generated servicers set this code and raise NotImplementedError for a method without an implementation.
        if context.code() == grpc.StatusCode.UNIMPLEMENTED:
            error = Unimplemented("This server has no such method: use a client of the same version.")
        else:
            error = _log_bug()
    except Exception:
        error = _log_bug()
    # Frames hold the request, and the error a traceback of them. Together they would stay until a garbage collection.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    record.code = grpc.StatusCode[error.code.name]
    record.log_fields = {"reason": error.reason, "error": error.local_message}
    status = to_grpc_status(error)
    # Send the id in trailing metadata: gRPC does not retry an RPC after initial metadata arrived.
    trailing = (*status.trailing_metadata, (REQUEST_ID_HEADER, current_request_id()))
    abort = partial(context.abort, status.code, status.details, trailing_metadata=trailing)
    if isinstance(error, ClientStalled):
        raise _UnsentError(error.caller, abort)
    return await abort()  # raises


def _log_bug() -> Internal:
    """Log the current exception and return the client's error."""
    _log.exception("unexpected error")
    return Internal(f"The server failed unexpectedly: search its log for request id {current_request_id()}.")


def _adapt(handler: Any, reader: RequestReader, sending: Sending) -> Handler:
    """Return `handler`, given its request, which sends the id.

    The writes of a stream are limited.
    """
    inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def unary(context: Context) -> Any:
        response = await inner(await reader.open(context, reader.sender(context)), context)
        await _send_request_id(context)
        return response

    async def generator(request: Any, context: Context) -> None:
        # Close the generator at once when the client cancels. Otherwise its `finally` would run at garbage collection.
        async with aclosing(inner(request, context)) as responses:
            async for first in responses:
                await _send_request_id(context)
                await context.write(first)
                break
            async for response in responses:
                await context.write(response)

    async def generate(context: Context) -> None:
        sender = reader.sender(context)
        with sending.open(context, sender.owner) as limited:
            await generator(await reader.open(context, sender), limited)

    async def write(context: Context) -> None:
        sender = reader.sender(context)
        with sending.open(context, sender.owner) as limited:
            # The id goes out while the request comes in, so that the handler waits once.
            sent = asyncio.create_task(_send_request_id(context))
            try:
                request = await reader.open(context, sender)
            finally:
                await sent
            await inner(request, limited)

    if not handler.response_streaming:
        return unary
    return generate if isasyncgenfunction(inner) else write


def _parent(context: Context) -> str | None:
    return parent_of(context.invocation_metadata(), peer_host(context.peer()))


async def _refuse(_context: Context) -> None:
    raise Unavailable("The server is stopping: retry the request.", reason="STOPPING")


async def _send_request_id(context: Context) -> None:
    await context.send_initial_metadata(((REQUEST_ID_HEADER, current_request_id()),))
