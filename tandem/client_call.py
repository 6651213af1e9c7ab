"""The envelope of a call: what goes beside its message, and how its errors read; all clients use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from chassis.api_keys import authorization
from chassis.errors import Cancelled, DeadlineExceeded, TandemError, Unavailable, from_rpc_error
from chassis.request_id import REQUEST_ID_HEADER, new_request_id
from tandem.client_types import GenerateOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one call carries beside its message, and how its errors read."""

    address: str
    request_id: str
    timeout_s: float | None
    release: str | None = None
    api_key: str | None = field(default=None, repr=False)  # never in a traceback

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


def new_call(
    address: str, default_timeout_s: float | None, api_key: str | None, options: GenerateOptions | None = None
) -> Call:
    """Return the envelope of one call."""
    options = options or {}
    return Call(
        address=address,
        request_id=options.get("request_id") or new_request_id(),
        timeout_s=options.get("timeout_s", default_timeout_s),
        release=options.get("release"),
        api_key=api_key,
    )
