"""Export vision halves for other libraries, and compare the results with torch."""

from vision_service.exporting.choosing import choose_backend
from vision_service.exporting.export import Exported, export_vision
from vision_service.exporting.target import ExportOptions, ExportTarget, Written

__all__ = ["ExportOptions", "ExportTarget", "Exported", "Written", "choose_backend", "export_vision"]
