"""Backends that run the vision half, chosen by `--backend`."""

from vision_service.backends.choice import BackendName, open_backend
from vision_service.backends.interface import VisionBackend

__all__ = ["BackendName", "VisionBackend", "open_backend"]
