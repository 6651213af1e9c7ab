"""Turn the images of a call into bytes of files."""

import io
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tandem.client.types import Image, ImageInput
from tandem.v1 import gateway_pb2

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def image_message(image: object) -> gateway_pb2.Image:
    """Return an image by its bytes or its digest.

    Args:
        image: an `Image` or its source.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is none of the accepted sources.
    """
    source = image.source if isinstance(image, Image) else image
    if isinstance(source, str) and _DIGEST.fullmatch(source):
        return gateway_pb2.Image(sha256=bytes.fromhex(source))
    return gateway_pb2.Image(data=read_image(source))


def read_image(source: object) -> bytes:
    """Return the bytes of an image file.

    Args:
        source: the path of a file, its bytes, or a Pillow image, which becomes a PNG.

    Raises:
        OSError: the file cannot be read.
        TypeError: it is none of these.
    """
    match source:
        case bytes():
            return source
        case bytearray() | memoryview():
            return bytes(source)
        case str() | Path():
            return Path(source).read_bytes()
    pillow: Any = sys.modules.get("PIL.Image")  # not imported, as clients work without Pillow
    if pillow is not None and isinstance(source, pillow.Image):
        return _to_png(source)
    raise TypeError(f"an image is a path, the bytes of a file or a Pillow image, not {type(source).__name__}")


def given_images(images: object) -> list[ImageInput]:
    """Return the images of a question, also of one alone."""
    if images is None:
        return []
    if isinstance(images, str | bytes | bytearray | memoryview | Path | Image):
        return [images]
    if isinstance(images, Iterable):
        return list(images)
    return [Image(images)]  # type: ignore[arg-type]  # a Pillow image, or an error that names its type


def _to_png(image: Any) -> bytes:
    """Return a Pillow image as PNG.

    Its orientation and profile stay.
    """
    exif = image.info.get("exif", b"")
    if image.mode not in _PNG_MODES:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif, compress_level=1)  # the fastest, because the gateway is most often near
    return file.getvalue()
