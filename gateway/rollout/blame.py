"""Tell errors of a release from those of its callers."""

from chassis.errors import (
    Cancelled,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from gateway.admission import REFUSALS

# Errors that the client caused. They say nothing about the release.
_CLIENT_ERRORS = (InvalidArgument, NotFound, Unauthenticated, PermissionDenied, Cancelled)


def is_client_error(error: BaseException) -> bool:
    """Return whether the client or a limit caused an error."""
    return isinstance(error, _CLIENT_ERRORS) or (isinstance(error, ResourceExhausted) and error.reason in REFUSALS)


def is_constraint_failure(error: BaseException) -> bool:
    """Return whether an answer could not follow its constraint.

    Either no answer can, or the release is at fault.
    """
    return isinstance(error, InvalidArgument) and error.reason == "CONSTRAINT_FAILED"
