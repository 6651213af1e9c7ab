"""Errors of Triton as ours, by status.

Triton's texts hold addresses and paths, so they go to the log only.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from tritonclient.utils import InferenceServerException

from chassis.errors import DeadlineExceeded, Internal, ResourceExhausted, TandemError, Unavailable

_RETRY_S = 1.0

_log = structlog.get_logger(__name__)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn an error of tritonclient in the block into ours.

    Raises:
        Unavailable: reason 'TRITON_UNREACHABLE', Triton cannot be reached or has ended. 'TRITON_NOT_READY', it does not
            serve this version now. 'TRITON_NO_VERSION', it does not know the model or this version of it.
        ResourceExhausted: reason 'QUEUE_FULL', Triton's queue is full, or the request waited in it for too long.
        DeadlineExceeded: reason 'TRITON_TIMEOUT', Triton did not answer in time.
        Internal: reason 'TRITON_FAILED', the model failed, or rejects its inputs.
    """
    try:
        yield
    except InferenceServerException as error:
        ours = _ours(error)
        _log.warning("triton failed", reason=ours.reason, status=error.status(), error=error.message())
        raise ours from error


def _ours(error: InferenceServerException) -> TandemError:
    status, text = (error.status() or "").removeprefix("StatusCode."), (error.message() or "").lower()
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded("Triton did not encode the image in time, retry later.", reason="TRITON_TIMEOUT")
    if "maximum queue size" in text or "request timeout expired" in text:
        return ResourceExhausted(
            "The queue of Triton is full, retry later.", reason="QUEUE_FULL", retry_after_s=_RETRY_S
        )
    if status == "NOT_FOUND" or "unknown model" in text or "unknown version" in text:
        return Unavailable(
            "Triton has no such version of the model: add it with `tandem checkpoint export --to triton-repository`.",
            reason="TRITON_NO_VERSION",
            retry_after_s=_RETRY_S,
        )
    if "not ready" in text or "is not at ready state" in text:
        return not_ready()
    if status in ("UNAVAILABLE", "CANCELLED"):
        return Unavailable("Triton cannot be reached, retry soon.", reason="TRITON_UNREACHABLE", retry_after_s=_RETRY_S)
    return Internal("Triton could not encode the image, see the vision service's log.", reason="TRITON_FAILED")


def not_ready() -> Unavailable:
    """Return the error of a version that is not served."""
    return Unavailable("Triton is not ready to run this model.", reason="TRITON_NOT_READY", retry_after_s=_RETRY_S)
