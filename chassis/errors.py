"""Exception tree with one class per gRPC status. `grpc_errors` sends them.

A message is one sentence for the caller. It names the problem and the remedy. It never holds an address, a path or a
secret.
"""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar


class Code(enum.Enum):
    """gRPC status codes of our errors, by name.

    With this enum, plain Python such as the rollout policy can raise errors without gRPC.
    """

    UNKNOWN = "UNKNOWN"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNAVAILABLE = "UNAVAILABLE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    DATA_LOSS = "DATA_LOSS"
    INTERNAL = "INTERNAL"


class TandemError(Exception):
    """An error with a gRPC status.

    Attributes:
        code: gRPC status of this class.
        message: one sentence for the caller.
        reason: UPPER_SNAKE_CASE name of the problem, stable for programs (`google.rpc.ErrorInfo.reason`).
        field: dotted name of the invalid request field, or None (`google.rpc.BadRequest`).
        retry_after_s: seconds to wait before a retry, or None if a retry cannot help (`google.rpc.RetryInfo`).
        metadata: further details by name (`google.rpc.ErrorInfo.metadata`).
        where: the file or folder concerned. It appears in local logs and is never sent.
        request_id: id of the failed request. Only the client sets it, because service logs already contain it.
    """

    code: ClassVar[Code] = Code.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        where: Path | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code.name
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})
        self.where = where
        self.request_id: str | None = None

    @property
    def local_message(self) -> str:
        """The message with `where`, for local logs and terminals."""
        return f"{self.message.removesuffix('.')} ({self.where})." if self.where is not None else self.message


class InvalidArgument(TandemError):
    """The request is invalid. A retry cannot help."""

    code = Code.INVALID_ARGUMENT


class NotFound(TandemError):
    """The requested thing does not exist here."""

    code = Code.NOT_FOUND


class Unauthenticated(TandemError):
    """The caller sent no valid credentials."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(TandemError):
    """The caller lacks the permission."""

    code = Code.PERMISSION_DENIED


class FailedPrecondition(TandemError):
    """The system is in the wrong state for the request."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(TandemError):
    """A queue, a quota or memory is full.

    The client should retry after `retry_after_s`.
    """

    code = Code.RESOURCE_EXHAUSTED


class DeadlineExceeded(TandemError):
    """The deadline of the request has passed."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(TandemError):
    """The caller cancelled the request."""

    code = Code.CANCELLED


class Unavailable(TandemError):
    """A part of the system is unreachable or stopping.

    A retry may help.
    """

    code = Code.UNAVAILABLE


class Unimplemented(TandemError):
    """The server does not support the request."""

    code = Code.UNIMPLEMENTED


class DataLoss(TandemError):
    """Data does not match its digest."""

    code = Code.DATA_LOSS


class Internal(TandemError):
    """A bug or a hardware failure.

    The log has details under the request id.
    """

    code = Code.INTERNAL
