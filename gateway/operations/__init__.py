"""Show operators the gateway at work: releases, recent times, caches, the rollout."""

from gateway.operations.request_window import Ending, RequestWindow
from gateway.operations.servicer import SERVICE_NAME, OperationsServicer

__all__ = ["SERVICE_NAME", "Ending", "OperationsServicer", "RequestWindow"]
