"""The one exception tree. Every error carries its gRPC status, and travels with `google.rpc` details.

A message is one sentence for the caller: it names what was wrong and never an address, a path or a secret.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "tandem"


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

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

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

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(TandemError):
    """What the request names is not here."""

    code = grpc.StatusCode.NOT_FOUND


class Unauthenticated(TandemError):
    """The caller did not say who it is, or not in a way that holds."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(TandemError):
    """The caller may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class FailedPrecondition(TandemError):
    """The system is not in the state the request needs: a checkpoint that does not fit, say."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(TandemError):
    """A queue, quota or memory is full; `retry_after_s` says when to come again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(TandemError):
    """The request's time ran out."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(TandemError):
    """The caller left."""

    code = grpc.StatusCode.CANCELLED


class Unavailable(TandemError):
    """A part of the system cannot be reached or is stopping; another try may succeed."""

    code = grpc.StatusCode.UNAVAILABLE


class Unimplemented(TandemError):
    """The request asks for something this server does not do."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DataLoss(TandemError):
    """Bytes are not what their digest says."""

    code = grpc.StatusCode.DATA_LOSS


class Internal(TandemError):
    """A bug or a broken machine; the log has the story under the request id."""

    code = grpc.StatusCode.INTERNAL


_BY_CODE: dict[grpc.StatusCode, type[TandemError]] = {kind.code: kind for kind in TandemError.__subclasses__()}

_FROM_THE_LIBRARY = {
    grpc.StatusCode.UNAVAILABLE: "The service cannot be reached.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "The service did not answer in time.",
    grpc.StatusCode.CANCELLED: "The call was cancelled.",
}


def to_proto(error: TandemError) -> status_pb2.Status:
    """Return `error` as a `google.rpc.Status` with its details."""
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(retry)
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def to_grpc_status(error: TandemError) -> grpc.Status:
    """Return `error` as what `context.abort_with_status` takes."""
    return rpc_status.to_status(to_proto(error))


def from_rpc_error(rpc_error: grpc.RpcError) -> TandemError:
    """Rebuild the error a server sent, details included; the reverse of `to_grpc_status`."""
    code: grpc.StatusCode = rpc_error.code()
    status = _embedded_status(rpc_error)
    # Without a status of our own it was gRPC's library that spoke, whose words hold addresses and file names.
    own = status.message if status else ""
    message = own or _FROM_THE_LIBRARY.get(code) or rpc_error.details() or code.name
    error = _BY_CODE.get(code, TandemError)(message, reason=code.name)
    for detail in status.details if status else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            error.reason, error.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            error.field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            error.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return error


def _embedded_status(rpc_error: grpc.RpcError) -> status_pb2.Status | None:
    """Return the `google.rpc.Status` of the trailing metadata, or None where there is none that can be read."""
    metadata: Any = rpc_error.trailing_metadata()  # pairs; the published types say one opaque object
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value)
            except Exception:  # a foreign server's details are no reason to lose its status
                return None
    return None
