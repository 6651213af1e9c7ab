"""Check and decode image files from untrusted clients.

The size is read from the header before anything is decoded. The content alone decides on the format. Messages of the
decoders are not passed on, because they contain addresses.
"""

import re
from dataclasses import dataclass, replace

from PIL import Image

from processing import load_upright, open_image_file, rejected_image

# Pillow refuses to open larger images.
PILLOW_MAX_PIXELS = 178_956_970

# JPEG encoders write about ten scans. A scan needs ten bytes only, and its decoding walks over the whole image.
_MAX_SCANS = 100
_MAX_SEGMENTS = 10_000  # of a JPEG, including scans. Encoders fill segments of up to 64 KiB
# Markers that end a scan or begin a segment. All others stand alone, or decoders skip them within data, so they cannot
# hide a segment.
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_END, _SCAN = b"\xd9", b"\xda"

# Pillow decodes run-length encoded BMPs in Python. This many pixels take up to half a second.
_MAX_RUN_LENGTH_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits that an image must meet before it is decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000  # width x height, about 200 MB once decoded
    min_side: int = 2  # pixels. An image of one pixel shows nothing and is most often a tracking image
    max_side: int = 65_535  # pixels, as in JPEG. Resizing a longer side takes more memory than its pixels


def check_bytes(data: bytes, limits: ImageLimits) -> None:
    """Check the size of an image file.

    Raises:
        InvalidArgument: reason 'IMAGE_EMPTY' or 'IMAGE_TOO_LARGE'.
    """
    if not data:
        raise rejected_image("IMAGE_EMPTY", "The image has no bytes.")
    if len(data) > limits.max_bytes:
        raise rejected_image("IMAGE_TOO_LARGE", f"The image has {len(data)} bytes, send at most {limits.max_bytes}.")


def read_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Check and decode an image file into upright 8-bit RGB.

    Transparent pixels become white. An animation becomes its first frame.

    Raises:
        InvalidArgument: reason 'IMAGE_EMPTY', 'IMAGE_TOO_LARGE' (bytes), 'IMAGE_UNSUPPORTED' (format),
            'IMAGE_TOO_MANY_PIXELS' (in total or on a side), 'IMAGE_TOO_SMALL' or 'IMAGE_TRUNCATED' (truncated or
            damaged).
    """
    check_bytes(data, limits)
    with open_image_file(data) as image:
        _check_size(image.width, image.height, limits)
        if any(tile.codec_name == "bmp_rle" for tile in image.tile):
            _check_size(image.width, image.height, replace(limits, max_pixels=_MAX_RUN_LENGTH_PIXELS))
        if image.format in ("JPEG", "MPO"):
            _check_scans(data)
        return load_upright(image)


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        message = f"The image has {width} x {height} pixels, send at most {limits.max_pixels} in total."
        raise rejected_image("IMAGE_TOO_MANY_PIXELS", message)
    if max(width, height) > limits.max_side:
        message = f"The image has {width} x {height} pixels, send at most {limits.max_side} on each side."
        raise rejected_image("IMAGE_TOO_MANY_PIXELS", message)
    if min(width, height) < limits.min_side:
        message = f"The image has {width} x {height} pixels, send at least {limits.min_side} on each side."
        raise rejected_image("IMAGE_TOO_SMALL", message)


def _check_scans(data: bytes) -> None:
    # Counting bytes is fast and clears almost every image.
    if data.count(b"\xff" + _SCAN) > _MAX_SCANS and _has_too_many_scans(data):
        message = f"The JPEG has more than {_MAX_SCANS} scans or {_MAX_SEGMENTS} segments, save the image again."
        raise rejected_image("IMAGE_UNSUPPORTED", message)


def _has_too_many_scans(data: bytes) -> bool:
    """Return whether a JPEG has too many scans or segments.

    Bytes that only look like scans do not count: those within a segment (thumbnails) or after the end of the image.
    """
    num_scans, at = 0, 2
    for _ in range(_MAX_SEGMENTS):
        marker = _JPEG_MARKER.search(data, at)
        if marker is None or marker[1] == _END:
            return False
        num_scans += marker[1] == _SCAN
        if num_scans > _MAX_SCANS:
            return True
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return True
