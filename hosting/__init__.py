"""Load, lease and drain the models of a stage, with its settings."""

from hosting.callers import Callers, Context
from hosting.models import ModelCalls, ModelHost
from hosting.settings import StageSettings

__all__ = ["Callers", "Context", "ModelCalls", "ModelHost", "StageSettings"]
