"""Shared by all clients: connections, call metadata, errors and answers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from chassis.api_keys import authorization
from chassis.channels import ChannelTls, check_target, environment_proxy, open_blocking_channel
from chassis.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    TandemError,
    Unavailable,
)
from chassis.grpc_errors import from_rpc_error
from chassis.network import DEFAULT_MAX_MESSAGE_BYTES, is_loopback
from chassis.request_id import REQUEST_ID_HEADER, new_request_id, request_id_of
from tandem.client.types import Answer, GenerateOptions
from tandem.client.uploads import Uploads
from tandem.client.wire import AnswerBuilder

DEFAULT_ADDRESS = "127.0.0.1:50050"
# gRPC treats an overflowing deadline as expired, so a longer timeout counts as none.
_MAX_TIMEOUT_S = 10 * 365 * 86_400.0

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The metadata and the timeout of one call."""

    address: str
    request_id: str
    timeout_s: float | None
    proxy: str | None = None  # on the way to the address
    release: str | None = None
    api_key: str | None = field(default=None, repr=False)  # never in a traceback

    def __post_init__(self) -> None:
        """Refuse values that would not arrive unchanged.

        gRPC fails on some of them. The gateway replaces a malformed request id by its own.

        Raises:
            InvalidArgument: reason 'BAD_REQUEST_ID', 'BAD_TAG' or 'BAD_OPTION' (timeout_s).
        """
        if self.timeout_s is not None and not (isinstance(self.timeout_s, int | float) and self.timeout_s > 0):
            raise InvalidArgument(
                f"timeout_s must be a number of seconds above 0, not {self.timeout_s!r}.",
                reason="BAD_OPTION",
                field="timeout_s",
            )
        if request_id_of([(REQUEST_ID_HEADER, str(self.request_id))]) != self.request_id:  # unequal also if no text
            raise InvalidArgument(
                "A request_id is 1 to 128 letters, digits, '.', '_' and '-'.", reason="BAD_REQUEST_ID"
            )
        tag = str(self.release or "")
        if not (tag.isascii() and tag.isprintable() and isinstance(self.release, str | None)):
            raise InvalidArgument(
                "The release has characters that no tag has: name it as `tandem models` lists it.", reason="BAD_TAG"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The call's metadata."""
        pin = (("x-tandem-release", self.release),) if self.release else ()
        key = (authorization(self.api_key),) if self.api_key else ()
        return ((REQUEST_ID_HEADER, self.request_id), *pin, *key)

    @contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise gRPC errors as `tandem.errors`, with the request id."""
        try:
            yield
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if not rpc_error.trailing_metadata():  # not sent by a server: the connection itself failed
                error = self._connection_error(error)
            error.request_id = self.request_id
            raise error from rpc_error

    def cancelled_error(self) -> Cancelled:
        """Return the error of a call that its caller cancelled."""
        error = Cancelled("The call was cancelled.")
        error.request_id = self.request_id
        return error

    def _connection_error(self, error: TandemError) -> TandemError:
        """Return a connection error that names the address or timeout."""
        if isinstance(error, Unavailable):
            if self.proxy is None:
                return Unavailable(f"Cannot reach a gateway at {self.address}.", reason="UNREACHABLE")
            return Unavailable(
                f"Cannot reach a gateway at {self.address} through the proxy {self.proxy} of the environment: name the "
                "host in the variable no_proxy to go without it.",
                reason="PROXY_FAILED",
            )
        if isinstance(error, ResourceExhausted):  # gRPC itself refuses a message above the server's limit
            return InvalidArgument(
                "The request is larger than this gateway takes: upload its images with put_image, and name them by "
                "their digests.",
                reason="REQUEST_TOO_LARGE",
                field="messages",
            )
        if isinstance(error, DeadlineExceeded) and self.timeout_s is not None:
            return DeadlineExceeded(f"No complete answer within {self.timeout_s:g} s.")
        return error


class Connection(ABC):
    """Base class of blocking and asyncio connections to a gateway."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        api_key: str | None = None,
        timeout_s: float | None = 600.0,
        use_proxy: bool = True,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        allow_plaintext: bool = False,
    ) -> None:
        """Prepare a connection. The first call connects.

        Args:
            address: host:port of the gateway.
            ca: PEM file of the authorities that may have signed the gateway's certificate. It turns encryption on.
            cert: PEM file of this client's certificate, if the gateway requires one.
            key: PEM file of the private key of `cert`.
            api_key: a key made by `tandem keys new`, if the gateway requires one.
            timeout_s: longest wait for a complete answer, seconds. None waits without limit.
            use_proxy: follow the proxy variables of the environment, except to an address of this machine.
            max_message_bytes: largest request of the gateway, its `--max-message-bytes`.
            allow_plaintext: send `api_key` without encryption to another machine, for example through a mesh.

        Raises:
            InvalidArgument: reason 'BAD_ADDRESS'.
            FailedPrecondition: reason 'BAD_TLS', a file cannot be read, or certificate and key do not match.
                'KEY_IN_CLEAR', the key would cross a network without encryption.
        """
        try:
            check_target(address)
        except ValueError as error:
            raise InvalidArgument(f"The address {error}.", reason="BAD_ADDRESS") from None
        tls = ChannelTls(ca=ca, cert=cert, key=key) if ca or cert or key else None
        is_local = is_loopback(address.rpartition("/")[2])
        if api_key and tls is None and not (is_local or allow_plaintext):
            raise FailedPrecondition(
                "An API key is sent only with encryption: name the authority of the gateway's certificate (ca).",
                reason="KEY_IN_CLEAR",
            )
        self.address = address
        self.timeout_s = timeout_s
        self.max_message_bytes = max_message_bytes
        self._api_key = api_key
        self._is_closed = False
        self._uploads = Uploads()
        self._uses_proxy = use_proxy and not is_local
        self._open(tls)

    @abstractmethod
    def _open(self, tls: ChannelTls | None) -> None:
        """Open the channel to `address`, and the stubs on it."""

    def _check_open(self) -> None:
        if self._is_closed:
            raise FailedPrecondition("The client is closed: open another one.", reason="CLIENT_CLOSED")

    def _envelope(self, options: GenerateOptions | None = None) -> Envelope:
        """Return the envelope of one call.

        Raises:
            FailedPrecondition: reason 'CLIENT_CLOSED'.
            InvalidArgument: as `Envelope`.
        """
        self._check_open()
        options = options or {}
        timeout_s = options.get("timeout_s", self.timeout_s)
        return Envelope(
            address=self.address,
            proxy=environment_proxy(self.address) if self._uses_proxy else None,
            request_id=options.get("request_id") or new_request_id(),
            timeout_s=None if isinstance(timeout_s, int | float) and timeout_s >= _MAX_TIMEOUT_S else timeout_s,
            release=options.get("release"),
            api_key=self._api_key,
        )


class Closeable(ABC):
    """An object that the end of a `with` block closes."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BlockingConnection(Connection, Closeable):
    """A connection whose calls block until they are answered. Thread-safe."""

    def _open(self, tls: ChannelTls | None) -> None:
        self._channel = open_blocking_channel(self.address, tls=tls, watch_health=True, use_proxy=self._uses_proxy)

    def close(self) -> None:
        """Close the connection and cancel its running requests."""
        self._is_closed = True
        self._channel.close()

    def _call(self, method: Callable[..., R], request: object) -> R:
        """Make a call that one message answers."""
        envelope = self._envelope()
        with envelope.translate_errors():
            return method(request, metadata=envelope.metadata, timeout=envelope.timeout_s)


class AnswerStream:
    """Base class of blocking and asyncio answer streams.

    Attributes:
        request_id: id of the request in the logs of all services.
    """

    def __init__(self, call: Any, envelope: Envelope, again: Callable[[TandemError], Any]) -> None:
        self.request_id = envelope.request_id
        self._call = call
        self._again = again  # returns a second call after an error, None to give up
        self._envelope = envelope
        self._builder = AnswerBuilder(envelope.request_id)

    @property
    def text(self) -> str:
        """The text received so far, also after an error."""
        return self._builder.text

    @property
    def final(self) -> Answer:
        """The complete answer.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        return self._builder.final

    def close(self) -> None:
        """Cancel the request if it is still running."""
        self._call.cancel()
