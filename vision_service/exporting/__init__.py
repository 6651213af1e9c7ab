"""Export vision halves for other libraries, and compare the results with torch."""

from vision_service.engines import EngineRecord
from vision_service.exporting.choosing import choose_backend
from vision_service.exporting.export import Exported, export_vision
from vision_service.exporting.on_demand import export_tensorrt, export_triton
from vision_service.exporting.target import ExportOptions, ExportTarget, Written
from vision_service.exporting.triton_settings import TritonSettings

__all__ = [
    "EngineRecord",
    "ExportOptions",
    "ExportTarget",
    "Exported",
    "TritonSettings",
    "Written",
    "choose_backend",
    "export_tensorrt",
    "export_triton",
    "export_vision",
]
