"""Open image files of untrusted clients, and decode them.

Opening reads format and size from the header only. The content alone decides on the format. Messages of the decoders
are not passed on, because they contain addresses.
"""

import io
import warnings

from PIL import Image, ImageFile, UnidentifiedImageError

from chassis.errors import InvalidArgument
from processing.images import is_turned, to_rgb, turn_upright

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# A photo takes about ten thousand reads, a large run-length encoded BMP hundreds of thousands. A malicious file can
# take many millions, each of them a call in Python.
_MAX_READS = 1_000_000

# Pillow warns of large sizes, which the vision service checks, and of odd EXIF, with which clients could flood the log.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image_file(data: bytes) -> ImageFile.ImageFile:
    """Read the header of an image file.

    Raises:
        InvalidArgument: reason 'IMAGE_EMPTY', 'IMAGE_UNSUPPORTED' (format), 'IMAGE_TOO_MANY_PIXELS' or
            'IMAGE_TRUNCATED' (truncated or damaged).
    """
    if not data:
        raise rejected_image("IMAGE_EMPTY", "The image has no bytes.")
    try:
        return Image.open(_CountedReads(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise rejected_image("IMAGE_UNSUPPORTED", f"The format is not supported, send {', '.join(FORMATS)}.") from error
    except Image.DecompressionBombError as error:
        raise rejected_image("IMAGE_TOO_MANY_PIXELS", "The image has too many pixels, send a smaller one.") from error
    except Exception as error:  # a damaged header, which each decoder reports with its own errors
        raise damaged_image() from error


def upright_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an image file, upright.

    Raises as `open_image_file`.
    """
    with open_image_file(data) as image:
        return (image.height, image.width) if is_turned(image) else (image.width, image.height)


def load_upright(image: Image.Image) -> Image.Image:
    """Decode an opened image into upright 8-bit RGB.

    Transparent pixels become white. An animation becomes its first frame.

    Raises:
        InvalidArgument: reason 'IMAGE_TRUNCATED', the image is truncated or damaged.
    """
    try:
        image.load()
        return turn_upright(to_rgb(image), image)
    except Exception as error:  # decoders raise many types of errors on damaged data
        raise damaged_image() from error


def rejected_image(reason: str, message: str) -> InvalidArgument:
    """Return the error of an image that is not accepted."""
    return InvalidArgument(message, reason=reason, field="image")


def damaged_image() -> InvalidArgument:
    """Return the error of an image that cannot be decoded."""
    return rejected_image("IMAGE_TRUNCATED", "The image is truncated or damaged, send a complete file.")


class _CountedReads(io.BytesIO):
    """BytesIO that raises after `_MAX_READS` reads."""

    _num_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._num_reads += 1
        if self._num_reads > _MAX_READS:
            raise OSError(f"more than {_MAX_READS} reads")
        return super().read(size)
