"""Run the vision half. A setting chooses the backend, in `choice`."""

from vision_service.backends.choice import BackendName, open_backend
from vision_service.backends.interface import VisionBackend

__all__ = ["BackendName", "VisionBackend", "open_backend"]
