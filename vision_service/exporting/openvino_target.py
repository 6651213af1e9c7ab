"""Export to OpenVINO, by way of ONNX."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openvino

from chassis.errors import TandemError
from checkpoint.exports import ExportKind, export_folder, read_export
from checkpoint.weights import LoadedHalf
from vision_service.backends import BackendOptions, library_version, open_graph
from vision_service.exporting.onnx_file import ONNX_FILE, OPSET, write_onnx
from vision_service.exporting.onnx_target import any_size, onnx_tools
from vision_service.exporting.target import ExportOptions, Written
from vision_service.model import Run


class OpenVinoTarget:
    """Writes files of OpenVINO's intermediate representation."""

    kind: ExportKind = "openvino"

    def write(self, half: LoadedHalf, place: Path, options: ExportOptions) -> Written:
        """Write graph and weights, with results in float32.

        Converts the ONNX export of the same weights, or a temporary one.
        """
        with _onnx_file(half, place, options) as path:
            model = openvino.convert_model(path)
            # Its Python has no bfloat16 arrays.
            processing = openvino.preprocess.PrePostProcessor(model)
            processing.output().tensor().set_element_type(openvino.Type.f32)
            openvino.save_model(processing.build(), place / "model.xml", compress_to_fp16=False)
        tools = {**onnx_tools(), "openvino": library_version("openvino")}
        return Written(tools=tools, profile=any_size(half.config), opset=OPSET)

    def open(self, place: Path, options: ExportOptions) -> Run:
        """Open the graph as the backend does."""
        return open_graph("openvino", place, BackendOptions(precision=options.precision))


@contextmanager
def _onnx_file(half: LoadedHalf, place: Path, options: ExportOptions) -> Iterator[Path]:
    checkpoint = place.parents[1]
    existing = export_folder(checkpoint, "onnx", options.precision) / ONNX_FILE
    try:
        read_export(checkpoint, "onnx", options.precision, vision_digest=half.digest)
    except TandemError:
        with tempfile.TemporaryDirectory(prefix=".onnx.", dir=place.parent) as folder:
            write_onnx(half.config, half.tensors, Path(folder) / ONNX_FILE)
            yield Path(folder) / ONNX_FILE
    else:
        yield existing
