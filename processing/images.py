"""Turn a decoded image into upright 8-bit sRGB on white."""

from typing import Any

import numpy as np
from PIL import Image, ImageChops

from processing.colours import to_srgb

# Names how pixels follow from a file, in every encoder id. Change it whenever the same file would become other pixels.
DECODING = "srgb-on-white-v2"

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_TURNED = 5  # from here on, the image lies on its side
_GREY_MODES = ("1", "L", "LA", "La")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the loaded image as 8-bit sRGB.

    Transparent pixels become white. Colours follow the image's own profile.
    """
    colours, alpha = _deep_grey(image) if image.mode.startswith("I") else _layers(image)
    rgb = to_srgb(colours, image.info.get("icc_profile"))
    if alpha is not None:
        rgb.paste("white", mask=ImageChops.invert(alpha))  # a copy of the colours, so it may be changed
    return rgb


def turn_upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Undo the rotation that a camera recorded in EXIF."""
    method = _UPRIGHT.get(_orientation(source))
    return rgb if method is None else rgb.transpose(method)


def is_turned(image: Image.Image) -> bool:
    """Return whether turning upright swaps width and height."""
    return _orientation(image) >= _FIRST_TURNED


def _layers(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours and the opacity of an image.

    The colours have mode L, RGB or CMYK.
    """
    is_grey = image.mode in _GREY_MODES
    if image.has_transparency_data:
        layer = image.convert("LA" if is_grey else "RGBA")
        return layer.convert("L" if is_grey else "RGB"), layer.getchannel("A")
    if is_grey:
        return image.convert("L"), None
    return image if image.mode in ("RGB", "CMYK") else image.convert("RGB"), None


def _deep_grey(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return 16-bit grey as 8-bit grey, and its opacity.

    Pillow's own conversion would clip all values above 255 to white, and compares transparency after it.
    """
    values: np.ndarray[Any, Any] = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8.

    Pillow's `getexif` would decode a whole PNG that has no EXIF.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        orientation = exif.get(_ORIENTATION_TAG)
    except Exception:  # ignore damaged EXIF, as browsers do
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1
