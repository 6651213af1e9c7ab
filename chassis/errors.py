"""The one exception tree. Every error carries its gRPC status; `grpc_errors` sends it.

A message is one sentence for the caller: it names what was wrong and never an address, a path or a secret.
"""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar


class Code(enum.Enum):
    """gRPC status codes of our errors, by name.

    An enum of our own, so that plain Python such as the rollout policy can raise errors without gRPC.
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
        code: gRPC status of this kind of error.
        message: one sentence for the caller.
        reason: what went wrong, UPPER_SNAKE_CASE, stable for programs (`google.rpc.ErrorInfo.reason`).
        field: the request field at fault, dotted, if one is (`google.rpc.BadRequest`).
        retry_after_s: seconds after which the same request may succeed, if waiting helps (`google.rpc.RetryInfo`).
        metadata: further facts by name (`google.rpc.ErrorInfo.metadata`).
        where: the folder or file it happened in, for logs and terminals of this machine; never sent.
        request_id: the request it ended, as the client names it; None inside the services, whose logs carry it.
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
        """The message with the path it is about, for whoever may read this machine's logs."""
        return f"{self.message.removesuffix('.')} ({self.where})." if self.where is not None else self.message


class InvalidArgument(TandemError):
    """The request itself is wrong; sending it again cannot help."""

    code = Code.INVALID_ARGUMENT


class NotFound(TandemError):
    """What the request names is not here."""

    code = Code.NOT_FOUND


class Unauthenticated(TandemError):
    """The caller did not say who it is, or not in a way that holds."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(TandemError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class FailedPrecondition(TandemError):
    """The system is not in the state the request needs: a checkpoint that does not fit, say."""

    code = Code.FAILED_PRECONDITION


class ResourceExhausted(TandemError):
    """A queue, quota or memory is full; `retry_after_s` says when to come again."""

    code = Code.RESOURCE_EXHAUSTED


class DeadlineExceeded(TandemError):
    """The request's time ran out."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(TandemError):
    """The caller left."""

    code = Code.CANCELLED


class Unavailable(TandemError):
    """A part of the system cannot be reached or is stopping; another try may succeed."""

    code = Code.UNAVAILABLE


class Unimplemented(TandemError):
    """The request asks for something this server does not do."""

    code = Code.UNIMPLEMENTED


class DataLoss(TandemError):
    """Bytes are not what their digest says."""

    code = Code.DATA_LOSS


class Internal(TandemError):
    """A bug or a broken machine; the log has the story under the request id."""

    code = Code.INTERNAL
