"""What happens around every call of every server: request id, error mapping, metrics and one log line."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from inspect import isasyncgenfunction
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from chassis.cancellation import is_asked_to_stop
from chassis.errors import Internal, InvalidArgument, TandemError, Unavailable, Unimplemented
from chassis.grpc_errors import to_grpc_status
from chassis.metrics import RPC_IN_FLIGHT, RPC_REQUESTS, RPC_SECONDS
from chassis.request_id import REQUEST_ID_HEADER, bound_request_id, current_request_id, request_id_of
from chassis.tracing import NO_SPAN, Span, span

# Asked every few seconds by kubelets, balancers and gateways, or open for as long as a process lives: not logged, not
# waited for.
_HOUSEKEEPING = re.compile(r"grpc\.(health|reflection)\..*|.*/ListModels|.*/Watch")
_SERVER_FAULTS = frozenset({grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS})

# A caller's clock starts when it sends and ours when we read, so its last word can be here before its time is up here.
_SLACK_S = 0.05

_log = structlog.get_logger()

Context = Any  # grpc.aio.ServicerContext; its published type lacks half of its methods
MethodHandler = Any  # grpc.RpcMethodHandler; generic in its published type, but not at run time
Answer = Callable[[Any, Context], Awaitable[Any]]


class CallsInFlight:
    """Counts the calls that are being handled, so that stopping can refuse new ones and wait for the last."""

    def __init__(self) -> None:
        self.refusing = False
        self.none_left = asyncio.Event()
        self.none_left.set()
        self._count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one call for the length of the block."""
        self._count += 1
        self.none_left.clear()
        try:
            yield
        finally:
            self._count -= 1
            if self._count == 0:
                self.none_left.set()


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Wraps every handler of a server.

    A handler raises a TandemError for what went wrong as its caller should see it. Anything else it raises is a bug:
    the caller gets INTERNAL and the request id, the log gets the traceback. Handlers are `async` and send no initial
    metadata of their own.
    """

    def __init__(self, in_flight: CallsInFlight) -> None:
        self._in_flight = in_flight
        self._wrapped: dict[str, MethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the wrapped handler, or None for a method nobody serves, which gRPC answers by itself."""
        path = handler_call_details.method
        if path not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[path] = self._wrap(path.removeprefix("/"), handler)
        return self._wrapped[path]

    def _wrap(self, method: str, handler: Any) -> MethodHandler:
        answer, parse = _answer_of(handler)
        housekeeping = _HOUSEKEEPING.fullmatch(method) is not None
        service, _, name = method.rpartition("/")
        facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}

        async def handle(request: Any, context: Context) -> Any:
            metadata = context.invocation_metadata()
            with (
                bound_request_id(request_id_of(metadata)),
                NO_SPAN if housekeeping else span(method, "server", facts, metadata) as step,
                _Report(method, housekeeping, step) as report,
            ):
                if housekeeping:
                    return await _mapping_errors(answer, request, context, report)
                if self._in_flight.refusing:
                    return await _mapping_errors(_refuse, request, context, report)
                with self._in_flight.counted():
                    return await _mapping_errors(answer, request, context, report)

        kinds: dict[tuple[bool, bool], Callable[..., MethodHandler]] = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }
        make = kinds[handler.request_streaming, handler.response_streaming]
        # A single request arrives as bytes and is parsed inside `answer`, where an error is mapped like all others.
        return make(handle, parse if handler.request_streaming else None, handler.response_serializer)


class _Report:
    """One call's metrics, its line in the log when it ends, and what its span says of the end."""

    def __init__(self, method: str, housekeeping: bool, step: Span) -> None:
        self.code = grpc.StatusCode.OK
        self.facts: dict[str, str] = {}  # what the log line says beside the code
        self._method = method
        self._housekeeping = housekeeping
        self._step = step

    def __enter__(self) -> "_Report":
        self._started = time.perf_counter()
        RPC_IN_FLIGHT.labels(self._method).inc()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        RPC_IN_FLIGHT.labels(self._method).dec()
        RPC_REQUESTS.labels(self._method, self.code.name).inc()
        RPC_SECONDS.labels(self._method).observe(seconds)
        self._step.note({"rpc.grpc.status_code": self.code.value[0]})
        if self.code in _SERVER_FAULTS:
            self._step.fail(self.code.name)
        _level(self.code, self._housekeeping)(
            "rpc", method=self._method, code=self.code.name, duration_ms=round(seconds * 1000, 3), **self.facts
        )


def _level(code: grpc.StatusCode, housekeeping: bool) -> Callable[..., None]:
    log: structlog.typing.FilteringBoundLogger = _log
    if code in _SERVER_FAULTS:
        return log.error
    return log.debug if housekeeping else log.info


async def _mapping_errors(answer: Answer, request: Any, context: Context, report: _Report) -> Any:
    """Answer, turning what is raised into the call's status."""
    try:
        return await answer(request, context)
    except TandemError as raised:
        error = raised
    except asyncio.CancelledError:
        if is_asked_to_stop():
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= _SLACK_S
            report.code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        error = _bug()  # nobody cancelled this call: something it awaited was, and the caller still waits
    except grpc.aio.AbortError:
        report.code = context.code()
        raise
    except NotImplementedError:
        # What generated servicers raise for methods that are not written, after they set this code.
        unwritten = context.code() == grpc.StatusCode.UNIMPLEMENTED
        error = Unimplemented("This server does not offer that method.") if unwritten else _bug()
    except Exception:
        error = _bug()
    report.code = grpc.StatusCode[error.code.name]
    report.facts = {"reason": error.reason, "error": error.local_message}
    status = to_grpc_status(error)
    # Errors go out without initial metadata, since a call whose headers came is not tried again; so the id trails.
    trailing = (*status.trailing_metadata, (REQUEST_ID_HEADER, current_request_id()))
    return await context.abort(status.code, status.details, trailing_metadata=trailing)  # raises


def _bug() -> Internal:
    """Log the exception that is being handled and return what the caller is told instead."""
    _log.exception("unexpected error")
    return Internal(f"The server failed; its log has the story under the request id {current_request_id()}.")


def _answer_of(handler: Any) -> tuple[Answer, Callable[[bytes], Any]]:
    """Return how to answer one call of `handler`, request id included, and how to parse one of its requests."""
    inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    parse = _parser(handler.request_deserializer)
    read = _unchanged if handler.request_streaming else parse

    async def with_one(request: Any, context: Context) -> Any:
        response = await inner(read(request), context)
        await _send_request_id(context)
        return response

    async def with_stream(request: Any, context: Context) -> None:
        # Closed here and now when the caller leaves, so what a handler holds is freed at once and not when collected.
        async with aclosing(inner(read(request), context)) as responses:
            async for first in responses:
                await _send_request_id(context)
                await context.write(first)
                break
            async for response in responses:
                await context.write(response)

    async def with_writes(request: Any, context: Context) -> None:
        await _send_request_id(context)
        await inner(read(request), context)

    if not handler.response_streaming:
        return with_one, parse
    return (with_stream if isasyncgenfunction(inner) else with_writes), parse


async def _refuse(_request: Any, _context: Context) -> None:
    raise Unavailable("The process is stopping.", reason="STOPPING")


async def _send_request_id(context: Context) -> None:
    await context.send_initial_metadata(((REQUEST_ID_HEADER, current_request_id()),))


def _unchanged(request: Any) -> Any:
    return request


def _parser(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a parser that names a malformed message for what it is; gRPC alone would answer INTERNAL."""

    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError) as error:
            message = "The request is not a well-formed message; text must be UTF-8."
            raise InvalidArgument(message, reason="BAD_MESSAGE") from error

    return parse
