"""Around every request: id, span, metrics, log line, host check, last resort."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chassis.errors import InvalidArgument, PermissionDenied, TandemError
from chassis.request_id import REQUEST_ID_HEADER, bound_request_id
from chassis.spans import Span
from chassis.tracing import parent_of, span
from http_gateway.door import Door
from http_gateway.wire.caller import request_id_from, values_of
from http_gateway.wire.errors import error_response, status_of, unexpected

REQUESTS = Counter("tandem_http_requests", "Finished HTTP requests, by path and status.", ["path", "status"])
SECONDS = Histogram(
    "tandem_http_seconds",
    "Duration of an HTTP request, from its headers to the end of its response, seconds.",
    ["path"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
IN_FLIGHT = Gauge("tandem_http_in_flight", "HTTP requests in flight.")

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_BACKGROUND = frozenset({"/healthz", "/readyz", "/metrics"})  # polled: logged at debug level only

_log = structlog.get_logger()


class Requests:
    """The outermost middleware of the application."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door
        self._hosts = frozenset(door.settings.hosts or (_LOOPBACK_NAMES if door.settings.is_local else ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = scope["headers"]
        request_id = request_id_from(headers)
        response = _Response(send, request_id, self._door)
        attributes = {"http.request.method": scope["method"], "url.scheme": scope["scheme"]}
        parent = parent_of(_text(headers), scope["client"][0] if scope["client"] else "unix:")
        with (
            bound_request_id(request_id),
            span(f"HTTP {scope['method']}", "server", attributes, parent) as request_span,
            _Record(scope, response, request_span),
            self._door.in_flight(),
        ):
            try:
                self._check_host(scope)
                self._check_page(scope)
                await self._app(scope, receive, response.send)
            except TandemError as error:
                response.error = error
                if not response.has_started:
                    await error_response(error)(scope, receive, response.send)
                # Otherwise the connection closes without the end of the response, so the client sees that it broke.
            except Exception:
                _log.exception("unexpected error")
                response.error = unexpected(request_id)
                if not response.has_started:
                    await error_response(response.error)(scope, receive, response.send)

    def _check_host(self, scope: Scope) -> None:
        """Check the Host header.

        A foreign page can give its own name the address of this machine (DNS rebinding). Its requests have that name.
        """
        hosts = values_of(scope["headers"], b"host")
        if len(hosts) > 1:
            raise InvalidArgument("Send one Host header.", reason="BAD_REQUEST")
        if self._hosts and hosts and _without_port(hosts[0].decode("latin-1").lower()) not in self._hosts:
            raise InvalidArgument("This server does not have that name: see its setting hosts.", reason="WRONG_HOST")

    def _check_page(self, scope: Scope) -> None:
        """Refuse posts of foreign pages.

        Browsers ask before they send JSON to another origin, but not before they send a form. They say where the page
        comes from. Other clients have no such header.
        """
        headers = scope["headers"]
        if scope["method"] != "POST" or not {b"cross-site", b"same-site"} & {*values_of(headers, b"sec-fetch-site")}:
            return
        origins = {origin.decode("latin-1") for origin in values_of(headers, b"origin")}
        if not origins or not origins <= {*self._door.settings.cors_origins}:
            raise PermissionDenied("Pages of other origins may not post: see cors_origins.", reason="FOREIGN_PAGE")


def _text(headers: list[tuple[bytes, bytes]]) -> Iterator[tuple[str, str]]:
    return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


class _Response:
    """Passes a response on, and notes what it was."""

    def __init__(self, send: Send, request_id: str, door: Door) -> None:
        self.status = 0
        self.error: TandemError | None = None
        self._send = send
        self._request_id = request_id
        self._door = door

    @property
    def has_started(self) -> bool:
        return self.status != 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (REQUEST_ID_HEADER.encode(), self._request_id.encode())]
            headers.append((b"x-content-type-options", b"nosniff"))
            if self._door.draining:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)


class _Record:
    """Records one finished request in metrics, log and span."""

    def __init__(self, scope: Scope, response: _Response, request_span: Span) -> None:
        self._scope = scope
        self._response = response
        self._span = request_span

    def __enter__(self) -> "_Record":
        self._started = time.perf_counter()
        IN_FLIGHT.inc()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        route = self._scope.get("route")
        path = getattr(route, "path", "") or "other"  # never the path of an unknown request: it is the client's text
        error = self._response.error
        status = status_of(error) if error is not None else self._response.status
        IN_FLIGHT.dec()
        REQUESTS.labels(path, status).inc()
        SECONDS.labels(path).observe(seconds)
        self._span.set_attributes({"http.route": path, "http.response.status_code": status})
        if status >= 500:
            self._span.fail(str(status))
        fields: dict[str, Any] = {"reason": error.reason, "error": error.local_message} if error is not None else {}
        self._level(path, status)(
            "http",
            method=self._scope["method"],
            path=path,
            status=status,
            duration_ms=round(seconds * 1000, 3),
            **fields,
        )

    @staticmethod
    def _level(path: str, status: int) -> Callable[..., None]:
        log: structlog.typing.FilteringBoundLogger = _log
        if status == 500:
            return log.error
        return log.debug if path in _BACKGROUND else log.info


def _without_port(host: str) -> str:
    """Return the name in a Host header."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
