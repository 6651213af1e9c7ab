"""Convert errors to and from gRPC statuses with `google.rpc` details."""

from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from chassis.errors import TandemError

DOMAIN = "tandem"

_BY_CODE: dict[grpc.StatusCode, type[TandemError]] = {
    grpc.StatusCode[kind.code.name]: kind for kind in TandemError.__subclasses__()
}

# Messages for errors of the gRPC library. Its own contain addresses and file names.
_MESSAGE_BY_CODE = {
    grpc.StatusCode.UNAVAILABLE: "The service cannot be reached: check its address and that it is running.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "The service did not answer before the deadline.",
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
    """Return `error` as a status for `context.abort_with_status`."""
    return rpc_status.to_status(to_proto(error))


def from_rpc_error(rpc_error: grpc.RpcError) -> TandemError:
    """Return the error that a server sent, with its details.

    It reverses `to_grpc_status`.
    """
    code: grpc.StatusCode = rpc_error.code()
    status = _embedded_status(rpc_error)
    sent = status.message if status else ""
    message = sent or _MESSAGE_BY_CODE.get(code) or rpc_error.details() or code.name
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
    """Return the `google.rpc.Status` of the trailing metadata, if any."""
    metadata: Any = rpc_error.trailing_metadata()  # pairs. The published type is one opaque object
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value)
            except Exception:  # keep the status of another server even if its details cannot be parsed
                return None
    return None
