"""Load, lease and drain the models of a stage, with its settings."""

from hosting.callers import Callers
from hosting.models import ModelCalls, ModelHost
from hosting.settings import StageSettings

__all__ = ["Callers", "ModelCalls", "ModelHost", "StageSettings"]
