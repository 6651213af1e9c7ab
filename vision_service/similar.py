"""Images that look the same: visual tokens reused for another file of the same photo.

An image's thumbnail, 32x32 greys, is a vector of 1024 numbers; where the cosine of two is above a threshold, the one
image's visual tokens answer for the other. That is a guess, which is why it is off unless an operator asks for it:
`docs/visual_cache.md` shows what it confuses.
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
WIDTH = SIDE * SIDE  # numbers of its vector

_FLAT = 2.0  # standard deviation of greys, of 255, below which an image is blank and its vector would be noise
_NUM_CANDIDATES = 4  # looked at for one image: the visual tokens of the nearest may have left the cache

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Similar:
    """An image that was encoded earlier."""

    visual_key: bytes
    image_sha256: bytes
    similarity: float  # cosine of the thumbnails


@dataclass(slots=True)
class _Scope:
    """The images of one encoder and one tenant; row i of the index is the i-th key, oldest first."""

    index: "faiss.IndexFlatIP"
    images: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)  # visual key -> serial number, SHA-256


def greys(image: Image.Image) -> NDArray[np.float32]:
    """Return the thumbnail of an RGB image, [32, 32] greys from 0 to 255, whatever its proportions."""
    # Box averaging first: every pixel counts, so a few changed ones move the thumbnail little.
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def thumbnail(image: Image.Image) -> Vector | None:
    """Return an image's thumbnail as a unit vector, [1024]; None for a blank image, which is like nothing.

    The mean is taken away: else brightness, which all images have, makes any two of them alike.
    """
    vector = greys(image).ravel()
    vector = vector - vector.mean()
    norm = float(np.linalg.norm(vector))
    return None if norm < _FLAT * SIDE else vector / np.float32(norm)


class SimilarImages:
    """Finds encoded images by their thumbnails, each within its own scope; for one thread."""

    def __init__(self, *, threshold: float, max_entries: int) -> None:
        """Start empty.

        Args:
            threshold: cosine from which two images count as the same.
            max_entries: most images remembered, all scopes together; the oldest leave.

        Raises:
            FailedPrecondition: FAISS is not installed (reason NO_FAISS).
        """
        try:
            import faiss  # an extra: only who switches this on needs it
        except ImportError:
            raise FailedPrecondition(
                "Reusing similar images needs FAISS: install the extra `similar`.", reason="NO_FAISS"
            ) from None
        self._faiss = faiss
        self._threshold = threshold
        self._max_entries = max_entries
        self._scopes: dict[Hashable, _Scope] = {}
        self._serial = itertools.count()

    def __len__(self) -> int:
        return sum(len(scope.images) for scope in self._scopes.values())

    def find(self, scope: Hashable, vector: Vector) -> list[Similar]:
        """Return images of the scope at or above the threshold, the most similar first."""
        known = self._scopes.get(scope)
        if known is None:
            return []
        cosines_1N, rows_1N = known.index.search(vector[None], min(_NUM_CANDIDATES, len(known.images)))
        keys = list(known.images)
        return [
            Similar(keys[row], known.images[keys[row]][1], min(float(cosine), 1.0))
            for cosine, row in zip(cosines_1N[0], rows_1N[0], strict=True)
            if cosine >= self._threshold
        ]

    def add(self, scope: Hashable, vector: Vector, *, visual_key: bytes, image_sha256: bytes) -> None:
        """Remember an image that was encoded."""
        known = self._scopes.get(scope)
        if known is None:
            known = self._scopes[scope] = _Scope(self._faiss.IndexFlatIP(WIDTH))
        if visual_key in known.images:
            return  # encoded again after it left the cache
        if len(self) >= self._max_entries:
            self._forget_oldest()
            known = self._scopes.setdefault(scope, known)
        known.index.add(vector[None])
        known.images[visual_key] = (next(self._serial), image_sha256)

    def _forget_oldest(self) -> None:
        """Forget an eighth of all images: the index moves what stays, which is cheap once in a while only."""
        serials = sorted(serial for scope in self._scopes.values() for serial, _ in scope.images.values())
        last_leaving = serials[(len(serials) - 1) // 8]
        for name, scope in list(self._scopes.items()):
            leaving = [key for key, (serial, _) in scope.images.items() if serial <= last_leaving]
            if leaving:
                scope.index.remove_ids(self._faiss.IDSelectorRange(0, len(leaving)))
                for key in leaving:
                    del scope.images[key]
            if not scope.images:
                del self._scopes[name]
