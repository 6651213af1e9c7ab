"""Images of many sizes and modes, decoded and upright."""

import numpy as np
from PIL import Image

from processing.images import to_rgb


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


_ALPHA = noise(200, 120, 5)
_ALPHA.putalpha(noise(200, 120, 6).convert("L"))

IMAGES = {
    "square": noise(256, 256, 0),
    "photo": noise(640, 480, 1),
    "tiny": noise(9, 14, 2),
    "very wide": noise(1600, 40, 3),
    "very high": noise(33, 900, 4),
    "grey": to_rgb(noise(300, 222, 7).convert("L")),
    "transparent": to_rgb(_ALPHA),
    "large": noise(1500, 1100, 8),
}
