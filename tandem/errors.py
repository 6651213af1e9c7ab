"""The errors that clients raise.

All derive from `TandemError`. Each has a `message`, a `reason` and a `request_id`.
"""

from chassis.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TandemError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

__all__ = [
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "TandemError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]
