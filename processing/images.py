"""Turn a decoded image into upright 8-bit RGB."""

import numpy as np
from PIL import Image

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


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the loaded image as 8-bit RGB."""
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion would clip all values above 255 to white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return image.convert("RGB")


def turn_upright(rgb: Image.Image, source: Image.Image) -> Image.Image:
    """Undo the rotation that a camera recorded in EXIF."""
    method = _UPRIGHT.get(_orientation(source))
    return rgb if method is None else rgb.transpose(method)


def is_turned(image: Image.Image) -> bool:
    """Return whether turning upright swaps width and height."""
    return _orientation(image) >= _FIRST_TURNED


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # ignore damaged EXIF, as browsers do
        return 1
    return orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1
