"""A model's life inside a stage: settings, load, ready, drain."""

from hosting.models import ModelCalls, ModelHost
from hosting.settings import StageSettings

__all__ = [
    "ModelCalls",
    "ModelHost",
    "StageSettings",
]
