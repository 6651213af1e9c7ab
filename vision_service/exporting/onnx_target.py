"""Export to ONNX, compared with torch by ONNX Runtime."""

import tempfile
from pathlib import Path

import onnx
import onnxscript
import torch

from checkpoint.exports import ExportKind, Profile, Range
from checkpoint.families import ModelConfig, Qwen3VLConfig
from checkpoint.weights import LoadedHalf
from vision_service.backends import BackendOptions, library_version, open_graph
from vision_service.exporting.onnx_file import ONNX_FILE, OPSET, widen, write_onnx
from vision_service.exporting.target import ExportOptions, Written
from vision_service.model import Run


class OnnxTarget:
    """Writes ONNX files."""

    kind: ExportKind = "onnx"

    def write(self, half: LoadedHalf, place: Path, options: ExportOptions) -> Written:
        """Write graph and weights."""
        write_onnx(half.config, half.tensors, place / ONNX_FILE)
        tools = {**onnx_tools(), "onnxruntime": library_version("onnxruntime")}
        return Written(tools=tools, profile=any_size(half.config), opset=OPSET)

    def open(self, place: Path, options: ExportOptions) -> Run:
        """Open the graph with ONNX Runtime on the CPU.

        A bfloat16 graph runs in float32 with the same weights, because ONNX Runtime computes in bfloat16 on GPUs only.
        """
        if options.precision != "bfloat16":
            return open_graph("onnxruntime", place, BackendOptions(precision=options.precision))
        with tempfile.TemporaryDirectory(prefix=".widened.", dir=place.parent) as folder:
            widen(place / ONNX_FILE, Path(folder) / ONNX_FILE)
            return open_graph("onnxruntime", Path(folder), BackendOptions(precision="float32"))


def onnx_tools() -> dict[str, str]:
    """Return the versions of the libraries that write ONNX files."""
    return {"torch": torch.__version__, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}


def any_size(config: ModelConfig) -> Profile:
    """Return the profile of a graph without limits."""
    one_or_more = Range(min=1, best=1)
    if not isinstance(config, Qwen3VLConfig):
        return Profile(batch=one_or_more)
    merged = config.vision.merge_size**2
    return Profile(batch=one_or_more, patches=Range(min=merged, best=merged))
