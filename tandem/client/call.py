"""What all clients share: where the gateway is, what goes beside each message, and how errors and answers read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from chassis.api_keys import authorization
from chassis.channels import ChannelTls, open_blocking_channel
from chassis.errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument, TandemError, Unavailable
from chassis.grpc_errors import from_rpc_error
from chassis.request_id import REQUEST_ID_HEADER, new_request_id, request_id_of
from tandem.client.types import Answer, GenerateOptions
from tandem.client.wire import AnswerBuilder

DEFAULT_ADDRESS = "127.0.0.1:50050"
# gRPC takes what no clock can reach for a time that has passed.
_FOR_EVER_S = 10 * 365 * 86_400.0

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one call carries beside its message, and how its errors read."""

    address: str
    request_id: str
    timeout_s: float | None
    release: str | None = None
    api_key: str | None = field(default=None, repr=False)  # never in a traceback

    def __post_init__(self) -> None:
        """Refuse what would not arrive as it is: gRPC fails on it, or the gateway puts an id of its own in its place.

        Raises:
            InvalidArgument: reason 'BAD_REQUEST_ID' or 'BAD_TAG'.
        """
        if request_id_of([(REQUEST_ID_HEADER, self.request_id)]) != self.request_id:
            raise InvalidArgument(
                "A request id is 1 to 128 letters, digits, '.', '_' and '-'.", reason="BAD_REQUEST_ID"
            )
        if self.release and not (self.release.isascii() and self.release.isprintable()):
            raise InvalidArgument("The release has characters that no tag has.", reason="BAD_TAG")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The call's metadata."""
        pin = (("x-tandem-release", self.release),) if self.release else ()
        key = (authorization(self.api_key),) if self.api_key else ()
        return ((REQUEST_ID_HEADER, self.request_id), *pin, *key)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise errors of gRPC as the tree's own, with the request id."""
        try:
            yield
        except grpc.RpcError as rpc_error:
            error = self._plainer(from_rpc_error(rpc_error), is_from_server=bool(rpc_error.trailing_metadata()))
            error.request_id = self.request_id
            raise error from rpc_error

    def cancelled(self) -> Cancelled:
        """Return the error of a call its own caller ended, which asyncio reports in its own way."""
        error = Cancelled("The call was cancelled.")
        error.request_id = self.request_id
        return error

    def _plainer(self, error: TandemError, *, is_from_server: bool) -> TandemError:
        """Return an error of the connection itself in words; a server's own errors are that already."""
        if is_from_server:
            return error
        if isinstance(error, Unavailable):
            return Unavailable(f"Cannot reach a gateway at {self.address}.", reason="UNREACHABLE")
        if isinstance(error, DeadlineExceeded) and self.timeout_s is not None:
            return DeadlineExceeded(f"No complete answer within {self.timeout_s:g} s.")
        return error


class Connection(ABC):
    """A connection to a gateway, as far as it is the same with asyncio and without."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        api_key: str | None = None,
        timeout_s: float | None = 600.0,
    ) -> None:
        """Connect to nothing yet; the first call does.

        Args:
            address: host:port of the gateway.
            ca: file of the certificates that may have signed the gateway's (PEM); given, the connection is encrypted.
            cert: this client's certificate (PEM), where the gateway asks for one.
            key: the key of `cert` (PEM).
            api_key: what `tandem keys new` printed, where the gateway asks for one.
            timeout_s: longest wait for a complete answer; None waits for ever.

        Raises:
            FailedPrecondition: reason 'BAD_TLS'; a file cannot be read, or certificate and key do not go together.
        """
        self.address = address
        self.timeout_s = timeout_s
        self._api_key = api_key
        self._is_closed = False
        self._open(ChannelTls(ca=ca, cert=cert, key=key) if ca or cert or key else None)

    @abstractmethod
    def _open(self, tls: ChannelTls | None) -> None:
        """Open the channel to `address`, and the stubs on it."""

    def _envelope(self, options: GenerateOptions | None = None) -> Call:
        """Return what goes beside the message of one call.

        Raises:
            FailedPrecondition: reason 'CLIENT_CLOSED'.
            InvalidArgument: as `Call`.
        """
        if self._is_closed:
            raise FailedPrecondition("The client is closed.", reason="CLIENT_CLOSED")
        options = options or {}
        timeout_s = options.get("timeout_s", self.timeout_s)
        return Call(
            address=self.address,
            request_id=options.get("request_id") or new_request_id(),
            timeout_s=timeout_s if timeout_s is not None and timeout_s < _FOR_EVER_S else None,
            release=options.get("release"),
            api_key=self._api_key,
        )


class ClosedByWith(ABC):
    """What is closed at the end of a `with` block."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class BlockingConnection(Connection, ClosedByWith):
    """A connection whose calls wait for their answer; thread-safe, and closed at the end of a `with` block."""

    def _open(self, tls: ChannelTls | None) -> None:
        self._channel = open_blocking_channel(self.address, tls=tls)

    def close(self) -> None:
        """Close the connection; running requests are cancelled."""
        self._is_closed = True
        self._channel.close()

    def _call(self, method: Callable[..., R], request: object) -> R:
        """Make a call that is answered by one message."""
        envelope = self._envelope()
        with envelope.translated():
            return method(request, metadata=envelope.metadata, timeout=envelope.timeout_s)


class AnswerStream:
    """An answer as it is produced, as far as it is the same with asyncio and without.

    Attributes:
        request_id: the name of the request in the logs of all services.
    """

    def __init__(self, call: Any, envelope: Call) -> None:
        self.request_id = envelope.request_id
        self._call = call
        self._envelope = envelope
        self._builder = AnswerBuilder(envelope.request_id)

    @property
    def text(self) -> str:
        """What has come so far; after an error, too."""
        return self._builder.text

    @property
    def final(self) -> Answer:
        """The complete answer.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        return self._builder.final

    def close(self) -> None:
        """Cancel the request if it still runs."""
        self._call.cancel()
