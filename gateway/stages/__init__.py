"""Choose replicas of the two stages and call them."""

from gateway.stages.balance import Routing
from gateway.stages.errors import translate_errors
from gateway.stages.failover import with_failover
from gateway.stages.language_call import CallEndedError, LanguageCall, LanguageStub
from gateway.stages.model_loading import ModelLoading
from gateway.stages.releases import (
    SERVICE_NAME,
    LanguageStage,
    Pin,
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
    "LanguageStub",
    "ModelLoading",
    "Pin",
    "Release",
    "Releases",
    "Replica",
    "Route",
    "Routing",
    "Stage",
    "VisionStage",
    "open_release",
    "translate_errors",
    "with_failover",
]
