"""Turn a decoded image into the input of a vision model.

S side of the model's square input, in pixels
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from checkpoint.families import VisionConfig

# Part of every encoder id. Change it whenever the same file would become other pixels.
PREPROCESSING = "pad-square-bicubic-v1"

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
    try:
        orientation = source.getexif().get(_ORIENTATION_TAG)
    except Exception:  # ignore damaged EXIF, as browsers do
        return rgb
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if method is None else rgb.transpose(method)


def to_pixels(image: Image.Image, config: VisionConfig) -> NDArray[np.float32]:
    """Return an RGB image as model input, [3, S, S].

    The image is scaled (bicubic) until its longer side is S, and centred on a square of the mean colour, as in
    LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744). So nothing is cropped and proportions stay. Colours in 0..1 are then
    normalised by the configuration's mean and standard deviation, so the border is about 0.
    """
    side = config.image_size
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    scaled = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
    if (width, height) != (side, side):
        border = tuple(round(255 * mean) for mean in config.image_mean)
        square = Image.new("RGB", (side, side), border)
        square.paste(scaled, ((side - width) // 2, (side - height) // 2))
        scaled = square
    colours_SS3 = np.asarray(scaled, dtype=np.float32) / np.float32(255)
    mean_3, std_3 = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
    normal_SS3 = (colours_SS3 - mean_3) / std_3
    return np.ascontiguousarray(normal_SS3.transpose(2, 0, 1))
