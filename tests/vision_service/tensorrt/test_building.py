"""Engines built by TensorRT for RTX, which needs no GPU to build."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from chassis.errors import FailedPrecondition
from checkpoint.exports import Export, Precision, Profile, Range, export_folder
from checkpoint.families import layout
from checkpoint.presets import PRESETS
from tests.vision_service.exports import TAGS, checkpoint, config_of, exported
from vision_service.backends import BackendOptions
from vision_service.backends.tensorrt_backend import open_tensorrt
from vision_service.engines import (
    ENGINES_FOLDER,
    EngineKey,
    Library,
    ShapeRange,
    build_engine,
    find_engine,
    load_engine,
    open_library,
)
from vision_service.exporting import ExportOptions
from vision_service.exporting.comparison import Samples
from vision_service.exporting.onnx_file import write_onnx
from vision_service.exporting.tensorrt import build_tensorrt, limited_profile, shape_ranges

pytestmark = [pytest.mark.tensorrt, pytest.mark.timeout(300)]

BATCH = Range(min=1, best=4, max=16)
PROFILES = {
    "resampler": Profile(batch=BATCH),
    "qwen3_vl": Profile(batch=Range(min=1, best=1, max=4), patches=Range(min=4, best=256, max=1024)),
}


@pytest.fixture(scope="module")
def library() -> Library:
    return open_library("tensorrt_rtx")


def no_samples() -> Samples:
    raise AssertionError("there is no GPU to compare on")


def built(family: str, precision: Precision = "float32") -> tuple[Path, Export]:
    made = exported(family, "onnx", precision)
    return export_folder(checkpoint(family), "onnx", made.export.precision), made.export


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
@pytest.mark.parametrize("family", TAGS)
def test_an_engine_of_an_export_is_built_and_found_again(library: Library, family: str, precision: Precision) -> None:
    place, export = built(family, precision)
    record = build_tensorrt(place, export, config_of(family), PROFILES[family], no_samples)
    key = EngineKey.portable(library, export.digest)
    assert find_engine(place / ENGINES_FOLDER, key)[0] == record
    assert record.profile == shape_ranges(config_of(family), PROFILES[family])
    assert record.max_error is None  # no GPU to compare it on
    print(f"\n{family} {precision}: {record.num_bytes / 2**20:.2f} MiB in {record.build_s:.1f} s")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("preset", ["qwen3-vl-8b", "qwen3-vl-8b-instruct"])
def test_engines_of_the_full_sizes_are_built(library: Library, tmp_path: Path, preset: str) -> None:
    """Their weights are random. Takes 6 GB of memory."""
    config, generator = PRESETS[preset], torch.Generator().manual_seed(0)
    specs = [spec for spec in layout(config) if spec.half == "vision"]
    tensors = {spec.name: (0.02 * torch.randn(spec.shape, generator=generator)).to(torch.bfloat16) for spec in specs}
    write_onnx(config, tensors, tmp_path / "model.onnx")
    limits = ExportOptions(max_batch_size=16 if config.num_visual_tokens else 4)
    made = build_engine(library, tmp_path / "model.onnx", shape_ranges(config, limited_profile(config, limits)))
    num_parameters = sum(tensor.numel() for tensor in tensors.values())
    print(
        f"\n{preset}: {num_parameters / 1e6:.0f} M parameters, {len(made.plan) / 2**20:.0f} MiB in {made.build_s:.1f} s"
    )
    assert len(made.plan) > 2 * num_parameters


def test_an_engine_of_another_export_is_not_found(library: Library) -> None:
    place, export = built("resampler")
    build_tensorrt(place, export, config_of("resampler"), PROFILES["resampler"], no_samples)
    other = export.model_copy(update={"vision_digest": bytes(32)})
    with pytest.raises(FailedPrecondition) as caught:
        find_engine(place / ENGINES_FOLDER, EngineKey.portable(library, other.digest))
    assert caught.value.reason == "NO_ENGINE"


def test_a_service_without_a_gpu_refuses_the_engine(library: Library) -> None:
    place, export = built("resampler")
    build_tensorrt(place, export, config_of("resampler"), PROFILES["resampler"], no_samples)
    with pytest.raises(FailedPrecondition, match="--device cuda"):
        open_tensorrt(place, BackendOptions(precision="float32"))
    with pytest.raises(FailedPrecondition, match="at most 16 images, and batches may have 17") as caught:
        open_tensorrt(place, BackendOptions(precision="float32", max_batch_size=17))
    assert caught.value.reason == "BAD_EXPORT"


@pytest.fixture
def square(tmp_path: Path) -> Path:
    """Return an ONNX file that squares x [batch, 4]."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "x"], ["y"])], "square", [x], [y])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    return path


def test_an_engine_that_the_library_rejects_is_refused_with_its_text(library: Library, square: Path) -> None:
    """Here the cause is that no GPU runs it."""
    if torch.cuda.is_available():
        pytest.skip("this machine can load engines")
    plan = build_engine(library, square, {"x": ONE_TO_EIGHT}).plan
    with pytest.raises(FailedPrecondition, match="CUDA driver") as caught:
        load_engine(library, plan)
    assert caught.value.reason == "BAD_ENGINE"


ONE_TO_EIGHT = ShapeRange((1, 4), (2, 4), (8, 4))


BUILD_WITH_GARBAGE = """
import gc, sys
from pathlib import Path
from vision_service.engines import ShapeRange, build_engine, building, open_library

def make_collecting_logger(library):
    logger = make_logger(library)
    class Collecting(type(logger)):
        def log(self, severity, message):
            if gc.isenabled():
                gc.collect()  # as Python may do at any time
    return Collecting()

library, make_logger = open_library("tensorrt_rtx"), building.make_logger
building.make_logger = make_collecting_logger
gc.set_threshold(10**6)  # not by chance before the library logs
garbage = [library.module.Builder(make_logger(library))]
garbage.append(garbage)
del garbage  # only a collection frees it now
build_engine(library, Path(sys.argv[1]), {"x": ShapeRange((1, 4), (2, 4), (8, 4))})
"""


def test_a_builder_in_garbage_does_not_block_a_build(square: Path) -> None:
    """A collection could free it while the library logs."""
    done = subprocess.run([sys.executable, "-c", BUILD_WITH_GARBAGE, str(square)], stderr=-1, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_library_without_a_timing_cache_builds_without_one(library: Library, square: Path) -> None:
    """Its functions for one do nothing, and warn."""
    built = build_engine(library, square, {"x": ONE_TO_EIGHT}, timing_cache=b"of another library")
    assert built.plan
    assert built.timing_cache == b""


def test_a_build_is_repeatable(library: Library, square: Path) -> None:
    first, second = (build_engine(library, square, {"x": ONE_TO_EIGHT}) for _ in range(2))
    assert len(first.plan) == len(second.plan)


@pytest.mark.parametrize(
    ("ranges", "cause"),
    [
        ({}, "dynamic inputs are x, and shapes are given for none"),
        ({"x": ONE_TO_EIGHT, "z": ONE_TO_EIGHT}, "shapes are given for x, z"),
        ({"x": replace(ONE_TO_EIGHT, max=(8, 5))}, "does not fit"),
        ({"x": replace(ONE_TO_EIGHT, min=(3, 4))}, "does not fit"),
        ({"x": replace(ONE_TO_EIGHT, min=(0, 4))}, "does not fit"),
        ({"x": replace(ONE_TO_EIGHT, opt=(2,))}, "does not fit"),
    ],
    ids=["missing", "unknown input", "fixed length", "descending", "empty", "dimensions"],
)
def test_a_wrong_profile_is_refused_with_its_cause(
    library: Library, square: Path, ranges: Mapping[str, ShapeRange], cause: str
) -> None:
    """The library itself returns None for a missing one."""
    with pytest.raises(FailedPrecondition, match=cause) as caught:
        build_engine(library, square, ranges)
    assert caught.value.reason == "BAD_PROFILE"


def test_the_parsers_text_is_part_of_the_error(library: Library, square: Path) -> None:
    model = onnx.load(square)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, square)
    with pytest.raises(FailedPrecondition, match="NoSuchOperator") as caught:
        build_engine(library, square, {"x": ONE_TO_EIGHT})
    assert caught.value.reason == "ONNX_REJECTED"
    assert str(square) not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"no ONNX file", None], ids=["empty", "text", "truncated"])
def test_a_damaged_onnx_file_is_refused(library: Library, square: Path, content: bytes | None) -> None:
    square.write_bytes(square.read_bytes()[:-20] if content is None else content)
    with pytest.raises(FailedPrecondition) as caught:
        build_engine(library, square, {"x": ONE_TO_EIGHT})
    assert caught.value.reason == "ONNX_REJECTED"
