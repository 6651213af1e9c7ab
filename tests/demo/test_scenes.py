"""Scenes and their drawings."""

import dataclasses
import io
from itertools import pairwise

import numpy as np
from PIL import Image

from checkpoint.presets import RESAMPLER_PRESETS
from demo.drawing import IMAGE_SIZE, draw
from demo.evaluate import to_png
from demo.scenes import HELD_OUT_SEEDS, KINDS, MATERIALS, POSITIONS, TRAINING_SEEDS, VALIDATION_SEEDS, Scene, make_scene
from processing.image_processors import open_image_processor
from vision_service.image_reader import ImageLimits, read_image

SEEDS = range(200)


def without_noise(scene: Scene) -> Scene:
    """Return the scene without grain, which changes every pixel."""
    return dataclasses.replace(scene, noise=0.0)


def test_a_seed_always_gives_the_same_image() -> None:
    for seed in range(5):
        assert draw(make_scene(seed)).tobytes() == draw(make_scene(seed)).tobytes()
    assert draw(make_scene(0)).tobytes() != draw(make_scene(1)).tobytes()


def test_training_validation_and_evaluation_share_no_seed() -> None:
    ranges = sorted((TRAINING_SEEDS, VALIDATION_SEEDS, HELD_OUT_SEEDS), key=lambda seeds: seeds.start)
    assert all(before.stop <= after.start for before, after in pairwise(ranges))


def test_scenes_have_one_to_three_items_at_different_positions() -> None:
    scenes = [make_scene(seed) for seed in SEEDS]
    assert {len(scene.items) for scene in scenes} == {1, 2, 3}
    for scene in scenes:
        places = [POSITIONS.index(item.position) for item in scene.items]
        assert places == sorted(set(places))


def test_some_scenes_repeat_a_kind() -> None:
    """Otherwise 'How many bags?' would never have the answer two."""
    assert any(len(scene.of_kind(scene.items[0].kind)) == 2 for scene in map(make_scene, SEEDS))


def test_an_item_changes_only_pixels_of_its_own_third() -> None:
    """So a position such as 'on the left' is unambiguous."""
    third = IMAGE_SIZE / 3
    for seed in SEEDS:
        scene = without_noise(make_scene(seed))
        for item in scene.items:
            others = tuple(other for other in scene.items if other != item)
            without = dataclasses.replace(scene, items=others)
            changed = (np.asarray(draw(scene)) != np.asarray(draw(without))).any(axis=2)
            columns, rows = np.flatnonzero(changed.any(axis=0)), np.flatnonzero(changed.any(axis=1))
            place = POSITIONS.index(item.position)
            assert columns[0] >= round(third * place)
            assert columns[-1] <= round(third * (place + 1)) + 1  # rounding and the outline's edge
            assert rows[0] > 0  # not cut off at the top
            assert rows[-1] < IMAGE_SIZE - 1
            assert changed.sum() > 800


def test_kinds_and_materials_look_different() -> None:
    scene = without_noise(next(scene for scene in map(make_scene, SEEDS) if len(scene.items) == 1))
    (item,) = scene.items
    by_kind = [dataclasses.replace(item, kind=kind) for kind in KINDS]
    by_material = [dataclasses.replace(item, material=material) for material in MATERIALS]
    for items in (by_kind, by_material):
        images = {draw(dataclasses.replace(scene, items=(one,))).tobytes() for one in items}
        assert len(images) == len(items)


def test_serving_and_training_see_the_same_pixels() -> None:
    """Serving neither scales nor pads the PNG of a drawing."""
    seed = HELD_OUT_SEEDS[7]
    drawn = draw(make_scene(seed))
    read = read_image(to_png(seed), ImageLimits())
    assert read.tobytes() == drawn.tobytes()
    config = RESAMPLER_PRESETS["demo"]
    pixels = open_image_processor(config).to_pixels(read).transpose(1, 2, 0)
    pixels = pixels * config.vision.image_std + config.vision.image_mean
    assert np.array_equal((pixels * 255).round().astype(np.uint8), np.asarray(drawn))
    assert Image.open(io.BytesIO(to_png(seed))).format == "PNG"
