"""Images that look the same are found, within their scope and within bounds."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vision_service.similar import WIDTH, SimilarImages, thumbnail


def unit(seed: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def remember(images: SimilarImages, seed: int, scope: str = "scope") -> None:
    images.add(scope, unit(seed), visual_key=bytes([seed]), image_sha256=b"sha %d" % seed)


def test_a_thumbnail_is_a_unit_vector_whatever_the_brightness() -> None:
    dark = Image.linear_gradient("L").point(lambda grey: grey // 2).convert("RGB")
    bright = Image.linear_gradient("L").point(lambda grey: grey // 2 + 100).convert("RGB")
    vectors = [thumbnail(image) for image in (dark, bright)]
    for vector in vectors:
        assert vector is not None
        assert vector.shape == (WIDTH,)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert float(np.dot(*vectors)) > 0.999  # type: ignore[arg-type]


def test_a_blank_image_is_like_nothing() -> None:
    """Else one white page would answer for every other."""
    noise = np.random.default_rng(0).integers(250, 253, (64, 64, 3), dtype=np.uint8)
    assert thumbnail(Image.new("RGB", (50, 40), "white")) is None
    assert thumbnail(Image.fromarray(noise)) is None


def test_the_nearest_comes_first_and_only_above_the_threshold() -> None:
    images = SimilarImages(threshold=0.9, max_entries=10)
    near = unit(1) + 0.2 * unit(2)
    for seed in (1, 2, 3):
        remember(images, seed)
    images.add("scope", near / np.linalg.norm(near), visual_key=b"near", image_sha256=b"sha near")
    found = images.find("scope", unit(1))
    assert [one.visual_key for one in found] == [b"\x01", b"near"]
    assert [one.image_sha256 for one in found] == [b"sha 1", b"sha near"]
    assert found[0].similarity == pytest.approx(1)
    assert 0.9 <= found[1].similarity < 1


def test_scopes_do_not_see_each_other() -> None:
    images = SimilarImages(threshold=0.9, max_entries=10)
    remember(images, 1, scope="one")
    assert images.find("other", unit(1)) == []
    remember(images, 2, scope="other")
    assert images.find("other", unit(1)) == []
    assert len(images.find("one", unit(1))) == 1


@pytest.mark.parametrize("max_entries", [1, 2, 8, 20])
def test_the_oldest_of_all_scopes_leave_and_the_rest_keep_their_names(max_entries: int) -> None:
    images = SimilarImages(threshold=0.9, max_entries=max_entries)
    for seed in range(60):
        remember(images, seed, scope=f"scope {seed % 3}")
        assert len(images) <= max_entries
    found = [seed for seed in range(60) if images.find(f"scope {seed % 3}", unit(seed))]
    assert found == list(range(60 - len(images), 60))
    for seed in found:
        assert images.find(f"scope {seed % 3}", unit(seed))[0].visual_key == bytes([seed])


def test_an_image_is_remembered_once() -> None:
    images = SimilarImages(threshold=0.9, max_entries=10)
    for _ in range(3):
        remember(images, 1)
    assert len(images) == 1
