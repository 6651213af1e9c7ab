"""Backends that run exports give the visual tokens of torch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from chassis.errors import FailedPrecondition, Internal
from checkpoint.exports import ExportKind, Precision, Profile, Range, read_export
from checkpoint.manifest import read_manifest
from tests.vision_service.exports import (
    RAGGED,
    TAGS,
    checkpoint,
    config_of,
    exported,
    floats,
    opened,
    zoo,
)
from tests.vision_service.openvino_processor import needs_bfloat16
from vision_service.backends import BackendName, BackendOptions, VisionBackend
from vision_service.backends.graph_backend import GraphBackend
from vision_service.model import Inputs, graph_batches

# The largest difference to torch in float32, relative to the largest magnitude. Both results are rounded to bfloat16.
BOUNDS: dict[tuple[BackendName, Precision], float] = {
    ("onnxruntime", "float32"): 0.004,
    ("onnxruntime", "float16"): 0.01,
    ("openvino", "float32"): 0.004,
    ("openvino", "bfloat16"): 0.04,
}
KINDS: dict[BackendName, ExportKind] = {"onnxruntime": "onnx", "openvino": "openvino"}

families = pytest.mark.parametrize("family", TAGS)
backends = pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param("onnxruntime", "float32"),
        pytest.param("onnxruntime", "float16", marks=pytest.mark.slow),
        pytest.param("openvino", "float32"),
        pytest.param("openvino", "bfloat16", marks=[pytest.mark.slow, needs_bfloat16]),
    ],
)


def graph(name: BackendName, family: str, precision: Precision, **options: object) -> VisionBackend:
    exported(family, KINDS[name], precision)
    return opened(name, family, precision, **options)


def difference(backend: VisionBackend, family: str, names: tuple[str, ...]) -> float:
    """Return the largest difference to torch in float32."""
    images = zoo(family, names)
    worst = 0.0
    for found, exact in zip(backend.encode(images), opened("torch", family).encode(images), strict=True):
        assert found.shape == exact.shape
        worst = max(worst, float(np.abs(floats(found) - floats(exact)).max() / np.abs(floats(exact)).max()))
    return worst


@families
@backends
def test_visual_tokens_equal_torchs(family: str, name: BackendName, precision: Precision) -> None:
    backend = graph(name, family, precision)
    worst = max(difference(backend, family, RAGGED[:size]) for size in (1, 2, 5))
    assert worst <= BOUNDS[name, precision]
    # Images differ by more, so the wrong image's tokens would be seen.
    one, other = (floats(tokens)[:16] for tokens in backend.encode(zoo(family, RAGGED[:2])))
    assert np.abs(one - other).max() > 2 * worst * np.abs(one).max()


@families
def test_an_image_has_the_same_tokens_alone_and_in_a_batch(family: str) -> None:
    backend = graph("onnxruntime", family, "float32")
    images = zoo(family)
    for together, image in zip(backend.encode(images), images, strict=True):
        [alone] = backend.encode([image])
        np.testing.assert_allclose(floats(together), floats(alone), atol=0.004 * np.abs(floats(alone)).max())


def test_openvino_runs_the_images_of_a_batch_side_by_side_for_throughput() -> None:
    backend = graph("openvino", "qwen3_vl", "float32", openvino_hint="throughput")
    assert difference(backend, "qwen3_vl", RAGGED) <= BOUNDS["openvino", "float32"]


def test_a_backend_tells_what_it_runs() -> None:
    backend = graph("onnxruntime", "resampler", "float32")
    reference = opened("torch", "resampler")
    assert (backend.name, backend.device, backend.precision) == ("onnxruntime", "cpu", "float32")
    assert backend.num_parameters == reference.num_parameters
    assert backend.num_weight_bytes == reference.num_weight_bytes
    assert backend.export_digest == exported("resampler", "onnx", "float32").export.digest
    assert reference.export_digest == b""


def test_equal_images_of_different_shape_share_a_run() -> None:
    """A batch is divided by the number of patches only."""
    config, [wide, other] = config_of("qwen3_vl"), zoo("qwen3_vl", ("photo", "square"))
    high = np.ascontiguousarray(wide.transpose(0, 2, 1))
    batches = graph_batches(config, [wide, other, high])
    assert [batch.images for batch in batches] == [(0, 2), (1,)]
    assert batches[0].inputs["patches"].shape[0] == 2


def bfloat16_on_a_cpu() -> VisionBackend:
    exported("resampler", "onnx", "bfloat16")
    return opened("onnxruntime", "resampler", "bfloat16")


def openvino_on_a_gpu() -> VisionBackend:
    exported("resampler", "openvino", "float32")
    return opened("openvino", "resampler", "float32", device=torch.device("cuda", 0))


def onnxruntime_without_cuda() -> VisionBackend:
    exported("resampler", "onnx", "float32")
    return opened("onnxruntime", "resampler", "float32", device=torch.device("cuda", 0))


@pytest.mark.parametrize("opening", [bfloat16_on_a_cpu, openvino_on_a_gpu, onnxruntime_without_cuda])
def test_a_backend_that_cannot_compute_this_says_so(opening: object) -> None:
    with pytest.raises(FailedPrecondition, match="choose") as caught:
        opening()  # type: ignore[operator]
    assert caught.value.reason == "UNSUPPORTED"


def backend_with(run: object, **profile: Range) -> GraphBackend:
    """Return a backend with its own run and profile."""
    exported("qwen3_vl", "onnx", "float32")
    digest = read_manifest(checkpoint("qwen3_vl")).vision.digest
    export = read_export(checkpoint("qwen3_vl"), "onnx", "float32", vision_digest=digest)
    return GraphBackend(
        name="onnxruntime",
        config=config_of("qwen3_vl"),
        export=export.model_copy(
            update={
                "profile": Profile(batch=profile.get("batch", Range(min=1, best=1)), patches=profile.get("patches"))
            }
        ),
        options=BackendOptions(precision="float32", max_batch_size=5, max_resized_pixels=2**20),
        run=run,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"batch": Range(min=1, best=1, max=4)}, "at most 4 images, and batches may have 5"),
        ({"patches": Range(min=4, best=4, max=4092)}, "at most 4092 patches of an image, and batches may have 4096"),
    ],
)
def test_a_profile_too_small_for_the_batch_limit_is_refused(profile: dict[str, Range], message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message) as caught:
        backend_with(None, **profile)
    assert caught.value.reason == "BAD_EXPORT"
    enough = {name: size.model_copy(update={"max": 4096}) for name, size in profile.items()}
    assert backend_with(None, **enough)


def test_a_result_of_wrong_shape_is_an_error() -> None:
    def run(_inputs: Inputs, shape: tuple[int, int, int]) -> Tensor:
        return torch.zeros(shape[0], shape[1] + 1, shape[2])

    with pytest.raises(Internal, match="shape") as caught:
        backend_with(run).encode(zoo("qwen3_vl"))
    assert caught.value.reason == "BAD_OUTPUT"
