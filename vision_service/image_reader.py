"""Check and decode image files from untrusted clients.

The size is read from the header before anything is decoded. The content alone decides on the format. Messages of the
decoders are not passed on, because they contain addresses.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from PIL import Image, ImageFile

from processing import load_upright, open_image_file, rejected_image
from vision_service.memory_budget import Budget, MemoryBudget

# Pillow refuses to open larger images.
PILLOW_MAX_PIXELS = 178_956_970

# JPEG encoders write about ten scans. A scan needs ten bytes only, and its decoding walks over the whole image.
_MAX_SCANS = 100
_MAX_SEGMENTS = 10_000  # of a JPEG, including scans. Encoders fill segments of up to 64 KiB
# Markers that end a scan or begin a segment. All others stand alone, or decoders skip them within data, so they cannot
# hide a segment.
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_END, _SCAN = b"\xd9", b"\xda"

# Peak memory of decoding, bytes per pixel and copies of the file: all that the decoder keeps, the image itself, and its
# copies by colour profile, on white and upright. Measured with the most costly files of each format.
BYTES_PER_PIXEL = {"JPEG": 18, "PNG": 18, "WEBP": 28, "GIF": 12, "BMP": 12, "AVIF": 24, "HEIF": 24}
FILE_COPIES = 4

# Pillow decodes run-length encoded BMPs in Python. This many pixels take up to half a second.
_MAX_RUN_LENGTH_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits that an image must meet before it is decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 52_000_000  # width x height. Phones and cameras of 50 megapixels have up to 51.1 million
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


@contextmanager
def decoded_image(data: bytes, limits: ImageLimits, memory: Budget) -> Iterator[Image.Image]:
    """Yield an image file as upright 8-bit sRGB, checked.

    Transparent pixels become white. An animation becomes its first frame. The memory stays reserved for the block.

    Raises:
        InvalidArgument: reason 'IMAGE_EMPTY', 'IMAGE_TOO_LARGE' (bytes), 'IMAGE_UNSUPPORTED' (format, or too many
            pieces), 'IMAGE_TOO_MANY_PIXELS' (in total, on a side, or for the memory), 'IMAGE_TOO_SMALL' or
            'IMAGE_TRUNCATED' (truncated or damaged).
        ResourceExhausted: reason 'NO_MEMORY'.
    """
    check_bytes(data, limits)
    with open_image_file(data) as image:
        _check_size(image.width, image.height, limits)
        if any(tile.codec_name == "bmp_rle" for tile in image.tile):
            _check_size(image.width, image.height, replace(limits, max_pixels=_MAX_RUN_LENGTH_PIXELS))
        if image.format == "JPEG":
            _check_scans(data)
        with memory.reserve(_check_memory(image, len(data), memory)):
            yield load_upright(image)


def read_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Return an image file as upright 8-bit sRGB.

    Raises as `decoded_image`.
    """
    most = limits.max_pixels * max(BYTES_PER_PIXEL.values()) + limits.max_bytes * FILE_COPIES
    with decoded_image(data, limits, MemoryBudget(most)) as image:
        return image


def _check_memory(image: ImageFile.ImageFile, file_bytes: int, memory: Budget) -> int:
    """Return the bytes that decoding takes.

    Raises:
        InvalidArgument: reason 'IMAGE_TOO_MANY_PIXELS', they exceed the budget.
    """
    per_pixel = BYTES_PER_PIXEL[image.format or ""]
    num_bytes = image.width * image.height * per_pixel + file_bytes * FILE_COPIES
    if num_bytes > memory.num_bytes:
        most = (memory.num_bytes - file_bytes * FILE_COPIES) // per_pixel
        message = (
            f"The {image.format} has {image.width} x {image.height} pixels, and this service has the memory for "
            f"{max(most, 0)} in this format: send a smaller image."
        )
        raise rejected_image("IMAGE_TOO_MANY_PIXELS", message)
    return num_bytes


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
