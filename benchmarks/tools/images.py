"""Image files that benchmarks send."""

import functools
import io

import numpy as np
from PIL import Image


def mosaic(seed: int) -> bytes:
    """Return a JPEG of coloured areas, 448 x 448 pixels.

    Every seed gives a different image.
    """
    pixels = np.random.default_rng(seed).integers(0, 255, (14, 14, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((448, 448)).save(file, "JPEG")
    return file.getvalue()


@functools.cache
def photograph(seed: int, width: int = 640, height: int = 480) -> bytes:
    """Return a JPEG file like a photo: smooth, with noise.

    With 640 x 480 pixels it has about 90 KiB. Every seed gives a different image.
    """
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, np.float32) + rng.normal(0, 12, (height, width, 1)).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()
