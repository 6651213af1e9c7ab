"""Errors of stage calls, translated for clients."""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog

from chassis.cancellation import is_asked_to_stop
from chassis.errors import Code, DeadlineExceeded, Internal, InvalidArgument, TandemError, Unavailable
from chassis.grpc_errors import from_rpc_error

# gRPC has no status code for this case alone, so its message is the only sign.
_TOO_LARGE = "message larger than max"

_MAX_LISTED = 5  # names in one error message

_log = structlog.get_logger()


def unreachable(stage: str) -> Unavailable:
    """Return the error for a stage that does not answer."""
    return Unavailable(
        f"The {stage} service cannot be reached.", reason=f"{stage.upper()}_UNREACHABLE", retry_after_s=1
    )


def model_absent(stage: str, tag: str, served: Collection[str]) -> Unavailable:
    """Return the error for a stage that lacks a model.

    Args:
        stage: name of the stage.
        tag: the model that was asked for.
        served: tags of the models that the stage does serve.
    """
    return Unavailable(
        f"The {stage} service does not serve {tag}, it serves {short_list(served)}.",
        reason="MODEL_ABSENT",
        retry_after_s=1,
    )


def short_list(names: Collection[str]) -> str:
    """Return the first few names for an error message."""
    listed = ", ".join(sorted(names)[:_MAX_LISTED]) or "none"
    return listed if len(names) <= _MAX_LISTED else f"{listed} and {len(names) - _MAX_LISTED} more"


@contextmanager
def translate_errors(stage: str) -> Iterator[None]:
    """Translate errors of the block's stage calls for clients.

    Typed errors of the stage pass unchanged. The messages of gRPC itself contain addresses, so they are replaced.

    Raises:
        TandemError: the translated error.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise _translate(stage, error) from None
    except (grpc.aio.InternalError, grpc.aio.UsageError):
        # The connection broke while the call started, or the channel was closed before. The replica was removed
        # after it was selected.
        raise unreachable(stage) from None
    except asyncio.CancelledError:
        if is_asked_to_stop():
            raise
        raise unreachable(stage) from None


def _translate(stage: str, rpc_error: grpc.RpcError) -> TandemError:
    error = from_rpc_error(rpc_error)
    metadata: Any = rpc_error.trailing_metadata()  # pairs, but the published types say one opaque object
    if "grpc-status-details-bin" in dict(metadata or ()):
        return error  # raised by a Tandem service, so it is safe for clients
    if error.code == Code.UNAVAILABLE:
        return unreachable(stage)
    if error.code == Code.RESOURCE_EXHAUSTED and _TOO_LARGE in error.message:  # every replica would reject it
        return InvalidArgument(
            f"The message is larger than the {stage} service accepts, send less at once.", reason="TOO_LARGE_FOR_STAGE"
        )
    if error.code == Code.DEADLINE_EXCEEDED:
        return DeadlineExceeded("The deadline of the request has passed.")
    _log.error("stage call failed", stage=stage, code=error.code.name, error=error.message)
    return Internal(f"The {stage} service failed, its log has the cause.", reason=f"{stage.upper()}_FAILED")
