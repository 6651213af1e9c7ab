"""Exports are exact, refused if they are not, and complete."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.exports import Precision, read_export
from checkpoint.initial import create_checkpoint
from checkpoint.manifest import read_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.verification import verify
from tests.vision_service.exports import TAGS, checkpoint, exported
from tests.vision_service.openvino_processor import needs_bfloat16
from vision_service.exporting import ExportOptions, export_vision, onnx_file, onnx_target
from vision_service.exporting.comparison import BOUNDS, Errors

IMAGE = Path(__file__).parents[3] / "demo" / "images" / "bag-and-bottle.png"

families = pytest.mark.parametrize("family", TAGS)
precisions = pytest.mark.parametrize(
    "precision", [pytest.param(name, marks=[pytest.mark.slow] if name != "float32" else []) for name in BOUNDS]
)


@families
@precisions
def test_an_onnx_file_keeps_the_type_of_its_weights(family: str, precision: Precision) -> None:
    made = exported(family, "onnx", precision)
    assert 0 < made.export.mean_error <= BOUNDS[precision][1]
    assert 0 < made.export.max_error <= BOUNDS[precision][0]
    model = onnx.load(checkpoint(family) / "exports" / made.export.name / "model.onnx")
    matrices = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 2}
    assert matrices == {getattr(onnx.TensorProto, precision.upper().replace("FLOAT32", "FLOAT"))}
    [output] = model.graph.output
    assert output.type.tensor_type.elem_type in matrices


@families
@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=[pytest.mark.slow, needs_bfloat16])])
def test_openvino_files_are_exact(family: str, precision: Precision) -> None:
    made = exported(family, "openvino", precision)
    assert set(made.export.files) == {"model.xml", "model.bin"}
    assert 0 < made.export.max_error <= BOUNDS[precision][0]
    assert "openvino" in made.export.tools


def test_an_export_is_recorded_beside_its_checkpoint() -> None:
    made = exported("resampler", "onnx", "float32")
    folder = checkpoint("resampler")
    read = read_export(folder, "onnx", "float32", vision_digest=read_manifest(folder).vision.digest)
    assert read == made.export
    assert {"torch", "onnx", "onnxruntime"} <= read.tools.keys()
    assert not [check for check in verify(folder) if check.problem]


def test_an_export_of_other_weights_has_another_digest(tmp_path: Path) -> None:
    create_checkpoint(tmp_path, TAGS["resampler"], RESAMPLER_PRESETS["tiny"], seed=1, dtype=torch.float32)
    options = ExportOptions(precision="float32", images=(IMAGE,))
    other = export_vision(tmp_path / TAGS["resampler"], "onnx", options)
    assert other.export.digest != exported("resampler", "onnx", "float32").export.digest
    assert other.errors.num_images == exported("resampler", "onnx", "float32").errors.num_images + 1


def test_an_inexact_export_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one matrix is wrong by five percent."""
    create_checkpoint(tmp_path, TAGS["resampler"], RESAMPLER_PRESETS["tiny"], dtype=torch.float32)
    write = onnx_file.write_onnx

    def write_wrong(config: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
        wrong = {**tensors, "perceiver_resampler.proj.weight": tensors["perceiver_resampler.proj.weight"] * 1.05}
        write(config, wrong, path)

    monkeypatch.setattr(onnx_target, "write_onnx", write_wrong)
    with pytest.raises(FailedPrecondition, match="differs too much from torch") as caught:
        export_vision(tmp_path / TAGS["resampler"], "onnx", ExportOptions(precision="float32"))
    assert caught.value.reason == "EXPORT_INEXACT"
    assert list((tmp_path / TAGS["resampler"] / "exports").iterdir()) == []


@pytest.mark.parametrize("error", [float("inf"), float("nan")])
def test_results_that_are_no_numbers_are_refused(error: float) -> None:
    with pytest.raises(FailedPrecondition):
        Errors(error, 0.0, 1).check("bfloat16", "export")
    with pytest.raises(FailedPrecondition):
        Errors(0.0, error, 1).check("bfloat16", "export")
    Errors(0.0, 0.0, 1).check("float32", "export")
