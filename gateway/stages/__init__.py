"""Know which endpoint serves which tag, and call it."""

from gateway.stages.errors import errors_of
from gateway.stages.failover import with_failover
from gateway.stages.language_call import CallEndedError, LanguageCall
from gateway.stages.model_loading import ModelLife
from gateway.stages.releases import (
    SERVICE_NAME,
    LanguageStage,
    Release,
    Releases,
    Route,
    VisionStage,
    open_release,
)
from gateway.stages.stage import Replica, Stage

__all__ = [
    "SERVICE_NAME",
    "CallEndedError",
    "LanguageCall",
    "LanguageStage",
    "ModelLife",
    "Release",
    "Releases",
    "Replica",
    "Route",
    "Stage",
    "VisionStage",
    "errors_of",
    "open_release",
    "with_failover",
]
