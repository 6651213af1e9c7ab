"""Batches are divided among lanes, and small engines refused."""

import pytest
import torch

from chassis.errors import FailedPrecondition
from tests.vision_service.exports import checkpoint, exported
from vision_service.backends import BackendOptions, open_backend
from vision_service.backends.tensorrt_backend import TensorRtGraph, check_limits, graph_sizes, parts
from vision_service.engines import BuiltEngine, EngineKey, EngineRecord, Library, ShapeRange

KEY = EngineKey(library="tensorrt", version="10", gpu="any", compute_capability="any", onnx_digest="")


def record(**profile: ShapeRange) -> EngineRecord:
    return EngineRecord.of(KEY, profile, BuiltEngine(b"", b"", 0))


def square(largest: int) -> ShapeRange:
    return ShapeRange((1, 3, 28, 28), (1, 3, 28, 28), (largest, 3, 28, 28))


def ragged(largest: int, patches: int) -> ShapeRange:
    return ShapeRange((1, 4, 768), (1, 256, 768), (largest, patches, 768))


def test_a_service_without_tensorrt_says_what_to_install() -> None:
    exported("resampler", "onnx", "float32")
    with pytest.raises(FailedPrecondition, match=r"tandem-serving\[tensorrt\]") as caught:
        open_backend("tensorrt", checkpoint("resampler"), BackendOptions(precision="float32"))
    assert caught.value.reason == "NO_TENSORRT"


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (12, [1, 2, 4, 8, 12]), (16, [1, 2, 4, 8, 16])]
)
def test_cuda_graphs_are_captured_for_powers_of_two_and_the_largest(largest: int, sizes: list[int]) -> None:
    assert graph_sizes({"pixels": square(largest)}) == sizes


def test_images_of_any_size_have_no_cuda_graphs() -> None:
    assert graph_sizes({"patches": ragged(16, 4096)}) == []


@pytest.mark.parametrize("batch_size", range(1, 40))
def test_every_image_of_a_batch_goes_to_one_lane(batch_size: int) -> None:
    slices = list(parts(batch_size, 2))
    assert len(slices) <= 2
    assert [place for one in slices for place in range(one.start, one.stop)] == list(range(batch_size))


def test_a_small_batch_is_not_divided() -> None:
    assert list(parts(4, 2)) == [slice(0, 4)]
    assert list(parts(16, 2)) == [slice(0, 8), slice(8, 16)]


def test_an_engine_that_is_too_small_for_the_limits_is_refused() -> None:
    options = BackendOptions(max_batch_size=16, max_resized_pixels=2**20)
    check_limits(record(pixels=square(16)), options)
    check_limits(record(patches=ragged(16, 4096)), options)  # of 16 x 16 pixels
    with pytest.raises(FailedPrecondition, match="at most 15 images, and batches may have 16") as caught:
        check_limits(record(pixels=square(15)), options)
    assert caught.value.reason == "BAD_EXPORT"
    with pytest.raises(FailedPrecondition, match="at most 4095 patches of an image, and batches may have 4096"):
        check_limits(record(patches=ragged(16, 4095)), options)


def test_an_engine_needs_a_gpu() -> None:
    with pytest.raises(FailedPrecondition, match="--device cuda") as caught:
        TensorRtGraph(Library(None, "tensorrt", "10"), record(pixels=square(1)), b"", torch.device("cpu"))
    assert caught.value.reason == "UNSUPPORTED"
