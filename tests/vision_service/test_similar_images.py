"""The similarity index finds similar images within a scope."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vision_service.similar_images import WIDTH, SimilarityIndex, thumbnail_vector


def unit(seed: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def add(index: SimilarityIndex, seed: int, scope: str = "scope") -> None:
    index.add(scope, unit(seed), visual_key=bytes([seed]), image_sha256=b"sha %d" % seed)


def test_a_thumbnail_is_a_unit_vector_at_any_brightness() -> None:
    dark = Image.linear_gradient("L").point(lambda grey: grey // 2).convert("RGB")
    bright = Image.linear_gradient("L").point(lambda grey: grey // 2 + 100).convert("RGB")
    vectors = [thumbnail_vector(image) for image in (dark, bright)]
    for vector in vectors:
        assert vector is not None
        assert vector.shape == (WIDTH,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert float(np.dot(*vectors)) > 0.999  # type: ignore[arg-type]


def test_a_blank_image_has_no_thumbnail() -> None:
    """Otherwise one white page would answer for every other."""
    noise = np.random.default_rng(0).integers(250, 253, (64, 64, 3), dtype=np.uint8)
    assert thumbnail_vector(Image.new("RGB", (50, 40), "white")) is None
    assert thumbnail_vector(Image.fromarray(noise)) is None


def test_images_above_the_threshold_are_found_nearest_first() -> None:
    index = SimilarityIndex(threshold=0.9, max_entries=10)
    near = unit(1) + 0.2 * unit(2)
    for seed in (1, 2, 3):
        add(index, seed)
    index.add("scope", near / np.linalg.norm(near), visual_key=b"near", image_sha256=b"sha near")
    found = index.find("scope", unit(1))
    assert [one.visual_key for one in found] == [b"\x01", b"near"]
    assert [one.image_sha256 for one in found] == [b"sha 1", b"sha near"]
    assert found[0].similarity == pytest.approx(1)
    assert 0.9 <= found[1].similarity < 1


def test_scopes_are_separate() -> None:
    index = SimilarityIndex(threshold=0.9, max_entries=10)
    add(index, 1, scope="one")
    assert index.find("other", unit(1)) == []
    add(index, 2, scope="other")
    assert index.find("other", unit(1)) == []
    assert len(index.find("one", unit(1))) == 1


@pytest.mark.parametrize("max_entries", [1, 2, 8, 20])
def test_the_oldest_images_of_all_scopes_are_evicted(max_entries: int) -> None:
    index = SimilarityIndex(threshold=0.9, max_entries=max_entries)
    for seed in range(60):
        add(index, seed, scope=f"scope {seed % 3}")
        assert len(index) <= max_entries
    found = [seed for seed in range(60) if index.find(f"scope {seed % 3}", unit(seed))]
    assert found == list(range(60 - len(index), 60))
    for seed in found:
        assert index.find(f"scope {seed % 3}", unit(seed))[0].visual_key == bytes([seed])


def test_an_image_is_added_once() -> None:
    index = SimilarityIndex(threshold=0.9, max_entries=10)
    for _ in range(3):
        add(index, 1)
    assert len(index) == 1
