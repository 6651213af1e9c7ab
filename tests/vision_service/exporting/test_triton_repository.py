"""Model repositories have one configuration and versions of known weights."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as messages

from chassis.errors import DataLoss, FailedPrecondition, InvalidArgument
from checkpoint.exports import Export, Profile, Range
from checkpoint.families import ModelConfig
from checkpoint.manifest import file_sha256
from checkpoint.presets import PRESETS
from checkpoint.tags import parse_tag
from vision_service.backends import triton_version
from vision_service.exporting import TritonSettings
from vision_service.exporting.triton_repository import add_to_repository, model_config

TINY, ANY_SIZE = PRESETS["tiny"], PRESETS["tiny-qwen3-vl"]
PLATFORMS = {"onnxruntime": "model.onnx", "python": "model.py", "tensorrt_plan": "model.plan"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return an export's folder, with files that nothing reads."""
    folder = tmp_path / "onnx-float32"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "model.onnx.data").write_bytes(b"weights")
    return folder


def export(place: Path, weights: int = 0, precision: str = "float32") -> Export:
    return Export(
        kind="onnx",
        precision=precision,  # type: ignore[arg-type]
        vision_digest=bytes([weights] * 32),
        files={path.name: file_sha256(path) for path in place.iterdir()},
        tools={"torch": "2.13.0"},
        opset=20,
        profile=Profile(batch=Range(min=1, best=1)),
        max_error=1e-6,
        mean_error=1e-6,
    )


def add(place: Path, tag: str, config: ModelConfig = TINY, weights: int = 0, **settings: Any) -> Path:
    settings = {"platform": "python", **settings}
    plan = b"plan" if settings["platform"] == "tensorrt_plan" else None
    return add_to_repository(
        place.parent / "repository",
        parse_tag(tag),
        config,
        export(place, weights),
        place,
        TritonSettings(**settings),
        plan=plan,
    )


def read_config(place: Path, name: str = "tiny") -> Any:
    text = (place.parent / "repository" / name / "config.pbtxt").read_text()
    return text_format.Parse(text, messages.ModelConfig())


@pytest.mark.parametrize(
    ("tag", "version"),
    [("a-v1.2.3", "1002003"), ("a-v0.0.1", "1"), ("a-v0.1.0", "1000"), ("a-v12.999.999", "12999999")],
)
def test_a_tag_has_a_version_that_orders_as_it_does(tag: str, version: str) -> None:
    assert triton_version(parse_tag(tag)) == version


@pytest.mark.parametrize("tag", ["a-v0.0.0", "a-v1.1000.0", "a-v1.0.1000"])
def test_a_tag_without_a_number_of_its_own_is_refused(tag: str) -> None:
    with pytest.raises(InvalidArgument, match="no version in Triton") as caught:
        triton_version(parse_tag(tag))
    assert caught.value.reason == "BAD_TAG"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_version_holds_the_files_of_its_platform(place: Path, platform: str) -> None:
    folder = add(place, "tiny-v1.2.3", platform=platform)
    assert folder == place.parent / "repository" / "tiny" / "1002003"
    names = {path.name for path in folder.iterdir()}
    assert PLATFORMS[platform] in names
    assert ({"model.onnx", "model.onnx.data"} <= names) == (platform != "tensorrt_plan")
    config = read_config(place)
    assert config.default_model_filename == PLATFORMS[platform]
    assert platform in (config.backend, config.platform)
    assert {path.name for path in folder.parent.iterdir()} == {"1002003", "config.pbtxt"}


def test_the_configuration_has_shapes_batching_and_instances(place: Path) -> None:
    add(place, "tiny-v1.0.0", max_batch_size=8, max_wait_ms=1.5, max_queue=32, instances=2, kind="gpu")
    config = read_config(place)
    [pixels], [tokens], [group] = config.input, config.output, config.instance_group
    assert (pixels.name, pixels.data_type, list(pixels.dims)) == ("pixels", messages.TYPE_FP32, [3, 224, 224])
    assert (tokens.name, tokens.data_type, list(tokens.dims)) == ("tokens", messages.TYPE_FP32, [32, 64])
    assert (config.max_batch_size, config.dynamic_batching.max_queue_delay_microseconds) == (8, 1500)
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.allow_timeout_override) == (32, True)
    assert (group.count, group.kind) == (2, messages.ModelInstanceGroup.KIND_GPU)
    assert config.version_policy.HasField("all")


def test_images_of_any_size_have_dynamic_dimensions(place: Path) -> None:
    config = model_config(parse_tag("any-v1.0.0"), ANY_SIZE, export(place, precision="bfloat16"), TritonSettings())
    dims = {tensor.name: list(tensor.dims) for tensor in config.input}
    assert dims["patches"][0] == dims["cosines"][0] == -1
    assert dims["corners"] == [4, -1]
    assert next(tensor for tensor in config.input if tensor.name == "corners").data_type == messages.TYPE_INT64
    assert list(config.output[0].dims) == [-1, ANY_SIZE.token_width]
    assert config.output[0].data_type == messages.TYPE_BF16


def test_all_versions_share_a_configuration_that_names_their_exports(place: Path) -> None:
    first, second = add(place, "tiny-v1.0.0"), add(place, "tiny-v1.1.0", weights=1)
    assert first.is_dir()
    assert second.is_dir()
    parameters = read_config(place).parameters
    assert parameters["tandem_export_digest_1000000"].string_value == export(place).digest.hex()
    assert parameters["tandem_export_digest_1001000"].string_value == export(place, 1).digest.hex()


def test_a_version_is_added_again_but_never_with_other_weights(place: Path) -> None:
    folder = add(place, "tiny-v1.0.0")
    before = read_config(place)
    (folder / "model.onnx").unlink()  # as if a copy was interrupted by hand
    add(place, "tiny-v1.0.0")
    assert (folder / "model.onnx").read_bytes() == b"graph"
    with pytest.raises(FailedPrecondition, match="never overwritten") as caught:
        add(place, "tiny-v1.0.0", weights=1)
    assert caught.value.reason == "VERSION_EXISTS"
    assert read_config(place) == before


@pytest.mark.parametrize("other", [{"max_batch_size": 4}, {"platform": "onnxruntime"}, {"instances": 3}])
def test_versions_with_other_settings_are_refused(place: Path, other: dict[str, Any]) -> None:
    """Triton would run the older version with them, too."""
    add(place, "tiny-v1.0.0")
    before = read_config(place)
    with pytest.raises(FailedPrecondition, match="other settings") as caught:
        add(place, "tiny-v1.1.0", weights=1, **other)
    assert caught.value.reason == "REPOSITORY_DIFFERS"
    assert read_config(place) == before
    assert not (place.parent / "repository" / "tiny" / "1001000").exists()


def test_a_changed_export_is_refused_and_nothing_is_added(place: Path) -> None:
    record = export(place)
    (place / "model.onnx").write_bytes(b"grap")
    with pytest.raises(DataLoss):
        add_to_repository(place.parent / "repository", parse_tag("tiny-v1.0.0"), TINY, record, place, TritonSettings())
    assert not (place.parent / "repository" / "tiny").exists()


def test_a_broken_configuration_is_refused(place: Path) -> None:
    add(place, "tiny-v1.0.0")
    (place.parent / "repository" / "tiny" / "config.pbtxt").write_text("name: [")
    with pytest.raises(FailedPrecondition, match="cannot be read") as caught:
        add(place, "tiny-v1.1.0")
    assert caught.value.reason == "BAD_REPOSITORY"


def test_the_platform_python_refuses_bfloat16(place: Path) -> None:
    record, settings = export(place, precision="bfloat16"), TritonSettings(platform="python")
    with pytest.raises(InvalidArgument, match="--precision float32") as caught:
        add_to_repository(place.parent / "repository", parse_tag("tiny-v1.0.0"), TINY, record, place, settings)
    assert caught.value.reason == "UNSUPPORTED"
