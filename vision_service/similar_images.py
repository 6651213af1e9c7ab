"""Find images that look the same, to reuse visual tokens.

The thumbnail of an image, 32x32 grey pixels, is a vector of 1024 numbers. If the cosine of two vectors is above a
threshold, the visual tokens of one image answer for the other. This can be wrong, so it is off by default.
`docs/visual_cache.md` shows which images it confuses.
"""

import itertools
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chassis.errors import FailedPrecondition

if TYPE_CHECKING:
    import faiss

SIDE = 32  # pixels of a thumbnail's side
WIDTH = SIDE * SIDE  # length of its vector

# With a lower standard deviation of its grey values (0 to 255) an image is blank, and its vector would be noise.
_MIN_DEVIATION = 2.0
# Results of one search. More than one, because the visual tokens of the nearest image may have been evicted.
_NUM_CANDIDATES = 4

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SimilarImage:
    """An earlier image that looks the same."""

    visual_key: bytes
    image_sha256: bytes
    similarity: float  # cosine of the thumbnails


@dataclass(slots=True)
class _Scope:
    """Images of one encoder and one tenant.

    Row i of the index belongs to the i-th key, oldest first.
    """

    index: "faiss.IndexFlatIP"
    images: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # visual key -> serial number, SHA-256


def grey_thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """Return a thumbnail, [32, 32], of grey values (0-255).

    Proportions are not kept.
    """
    # Box averaging gives every pixel the same weight, so that a few changed pixels hardly change the thumbnail.
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def thumbnail_vector(image: Image.Image) -> Vector | None:
    """Return the thumbnail as a unit vector, [1024].

    None if the image is blank.


    The mean is subtracted. Otherwise brightness, which all images have, would make any two of them similar.
    """
    vector = grey_thumbnail(image).ravel()
    vector = vector - vector.mean()
    norm = float(np.linalg.norm(vector))
    return None if norm < _MIN_DEVIATION * SIDE else vector / np.float32(norm)


class SimilarityIndex:
    """Finds encoded images by their thumbnails, within a scope.

    For one thread.
    """

    def __init__(self, *, threshold: float, max_entries: int) -> None:
        """Start empty.

        Args:
            threshold: minimum cosine at which two images count as the same.
            max_entries: limit for the images of all scopes together. The oldest are evicted.

        Raises:
            FailedPrecondition: reason 'NO_FAISS', FAISS is not installed.
        """
        try:
            import faiss  # optional, only needed here
        except ImportError:
            raise FailedPrecondition(
                "--reuse-similar needs FAISS, install the extra `similar`.", reason="NO_FAISS"
            ) from None
        self._faiss = faiss
        self._threshold = threshold
        self._max_entries = max_entries
        self._scopes: dict[Hashable, _Scope] = {}
        self._serial = itertools.count()

    def __len__(self) -> int:
        return sum(len(scope.images) for scope in self._scopes.values())

    def find(self, scope: Hashable, vector: Vector) -> list[SimilarImage]:
        """Return images at or above the threshold, most similar first."""
        known = self._scopes.get(scope)
        if known is None:
            return []
        cosines_1N, rows_1N = known.index.search(vector[None], min(_NUM_CANDIDATES, len(known.images)))
        keys = list(known.images)
        return [
            SimilarImage(keys[row], known.images[keys[row]][1], min(float(cosine), 1.0))
            for cosine, row in zip(cosines_1N[0], rows_1N[0], strict=True)
            if cosine >= self._threshold
        ]

    def add(self, scope: Hashable, vector: Vector, *, visual_key: bytes, image_sha256: bytes) -> None:
        """Add an encoded image."""
        known = self._scopes.get(scope)
        if known is None:
            known = self._scopes[scope] = _Scope(self._faiss.IndexFlatIP(WIDTH))
        if visual_key in known.images:
            return  # encoded again after its visual tokens were evicted
        if len(self) >= self._max_entries:
            self._evict_oldest()
            known = self._scopes.setdefault(scope, known)
        known.index.add(vector[None])
        known.images[visual_key] = (next(self._serial), image_sha256)

    def _evict_oldest(self) -> None:
        """Evict an eighth of all images.

        Each eviction moves the remaining rows of an index, so a few large ones are cheaper than many small ones.
        """
        serials = sorted(serial for scope in self._scopes.values() for serial, _ in scope.images.values())
        last_evicted = serials[(len(serials) - 1) // 8]
        for name, scope in list(self._scopes.items()):
            evicted = [key for key, (serial, _) in scope.images.items() if serial <= last_evicted]
            if evicted:
                scope.index.remove_ids(self._faiss.IDSelectorRange(0, len(evicted)))
                for key in evicted:
                    del scope.images[key]
            if not scope.images:
                del self._scopes[name]
