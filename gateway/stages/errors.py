"""What calls of the stages raise, made fit for clients."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog

from chassis.cancellation import is_asked_to_stop
from chassis.errors import Code, DeadlineExceeded, Internal, InvalidArgument, TandemError, Unavailable
from chassis.grpc_errors import from_rpc_error

_TOO_LARGE = "message larger than max"  # gRPC's words; it has no code for it alone

_log = structlog.get_logger()


def unreachable(stage: str) -> Unavailable:
    """Return the error of a stage that does not answer."""
    return Unavailable(
        f"The {stage} service cannot be reached.", reason=f"{stage.upper()}_UNREACHABLE", retry_after_s=1
    )


@contextmanager
def errors_of(stage: str) -> Iterator[None]:
    """Translate what calls of a stage raise into errors a client may see.

    Typed errors pass on as they are. Those gRPC makes itself carry addresses, so they get words of our own.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _translate(stage, error) from None
    except (grpc.aio.InternalError, grpc.aio.UsageError):
        # The connection broke while the call was being started, or the channel was closed before: the replica left
        # between being found and being called.
        raise unreachable(stage) from None
    except asyncio.CancelledError:
        if is_asked_to_stop():
            raise
        raise unreachable(stage) from None


def _translate(stage: str, rpc_error: grpc.RpcError) -> TandemError:
    error = from_rpc_error(rpc_error)
    metadata: Any = rpc_error.trailing_metadata()  # pairs; the published types say one opaque object
    if "grpc-status-details-bin" in dict(metadata or ()):
        return error  # one of ours, made for clients
    if error.code == Code.UNAVAILABLE:
        return unreachable(stage)
    if error.code == Code.RESOURCE_EXHAUSTED and _TOO_LARGE in error.message:  # any replica refuses it
        return InvalidArgument(f"The {stage} service does not take so much at once.", reason="TOO_LARGE_FOR_STAGE")
    if error.code == Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The time of the request ran out.")
    _log.error("stage failed", stage=stage, code=error.code.name, error=error.message)
    return Internal(f"The {stage} service failed.", reason=f"{stage.upper()}_FAILED")
