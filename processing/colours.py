"""Convert colours to sRGB, by the colour profile of an image."""

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from processing.image_metadata import MAX_PROFILE_BYTES

_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile, and the mode of its colours
_LARGEST_EQUAL_DIFFERENCE = 2  # of 255. A profile that moves no colour further is taken for sRGB
_UNBOUNDED = b"mpet"  # elements of a profile that can take any time. Neither cameras nor screens use them


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image in sRGB.

    A profile that is damaged, too large or of another colour space is ignored, as browsers do.

    Args:
        image: of mode L, RGB or CMYK.
        profile: ICC profile of the file. None means sRGB.
    """
    transform = _transform(profile, image.mode) if profile and len(profile) <= MAX_PROFILE_BYTES else None
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # converting to the same mode would copy


def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the way to sRGB.

    None if there is none, or none is needed.
    """
    if _UNBOUNDED in profile:
        return None
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _SPACES.get(opened.profile.xcolor_space) != mode:
            return None
        transform: Any = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if _is_close_to_srgb(transform, mode) else transform


def _is_close_to_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Return whether a transform leaves colours nearly as they are."""
    if mode == "CMYK":
        return False
    samples = _samples(mode)
    plain, moved = (np.asarray(one, np.int16) for one in (samples.convert("RGB"), transform.apply(samples)))
    return int(np.abs(plain - moved).max()) <= _LARGEST_EQUAL_DIFFERENCE


@cache
def _samples(mode: str) -> Image.Image:
    """Return colours from all of a space."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    if mode == "L":
        return Image.fromarray(levels[None])
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3))
