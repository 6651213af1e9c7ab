"""The sizes of an engine follow from the limits of batches."""

import pytest

from checkpoint.presets import PRESETS
from vision_service.exporting import ExportOptions
from vision_service.exporting.tensorrt import limited_profile, shape_ranges

OPTIONS = ExportOptions(max_batch_size=8, max_resized_pixels=2**18)


def test_images_of_one_size_have_a_range_of_batches() -> None:
    config = PRESETS["tiny"]
    [(name, shapes)] = shape_ranges(config, limited_profile(config, OPTIONS)).items()
    assert name == "pixels"
    assert (shapes.min, shapes.opt, shapes.max) == ((1, 3, 224, 224), (8, 3, 224, 224), (8, 3, 224, 224))


def test_images_of_any_size_have_a_range_of_patches() -> None:
    config = PRESETS["tiny-qwen3-vl"]
    ranges = shape_ranges(config, limited_profile(config, OPTIONS))
    assert ranges.keys() == {"patches", "corners", "corner_weights", "cosines", "sines"}
    largest = 2**18 // 16**2
    assert [shape[1] for shape in (ranges["patches"].min, ranges["patches"].opt, ranges["patches"].max)] == [
        4,
        largest,
        largest,
    ]
    assert ranges["corners"].max == (8, 4, largest)
    assert all(shapes.min[0] == 1 and shapes.max[0] == 8 for shapes in ranges.values())


@pytest.mark.parametrize(("pixels", "best"), [(2**18, 1024), (2**20, 1024), (2**16, 256)])
def test_an_engine_is_the_fastest_for_images_of_middle_size(pixels: int, best: int) -> None:
    profile = limited_profile(PRESETS["tiny-qwen3-vl"], ExportOptions(max_resized_pixels=pixels))
    assert profile.patches is not None
    assert profile.patches.best == best
