"""Valid and invalid image files."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from chassis.errors import InvalidArgument
from vision_service.image_reader import ImageLimits, read_image

LIMITS = ImageLimits()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """Return an image with no two similar regions."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 5, y * 7, (x + y) * 3], -1).astype(np.uint8))


def rejection(data: bytes, limits: ImageLimits = LIMITS) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        read_image(data, limits)
    error = caught.value
    assert error.field == "image"
    # Messages of decoders contain addresses and types. Messages to clients must not.
    assert not re.search(r"0x[0-9a-f]{4}|<|/|BytesIO|Error", error.message)
    return error


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_one_colour(width: int, height: int) -> bytes:
    """Return a valid black PNG, compressed to about a thousandth."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # 1-bit grey
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
