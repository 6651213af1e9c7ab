"""Images as they arrive, to pixels as the model takes them.

An image comes from a stranger: its size is known from its header before anything is decoded, its format is told by
its content and never by a name, and whatever a decoder says about it stays here, since those messages hold addresses.
"""

import io
import re
import warnings
from dataclasses import dataclass, replace

from PIL import Image, ImageFile, UnidentifiedImageError

from chassis.errors import InvalidArgument
from processing import to_rgb, turn_upright

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Above this, Pillow opens no image at all.
PILLOW_MAX_PIXELS = 178_956_970

# A photo is read in some ten thousand pieces, a large run-length coded BMP in hundreds of thousands; a file can be made
# of many millions, each of which costs a turn of Python.
_MAX_READS = 1_000_000
# An encoder makes about ten. A scan needs no more than ten bytes, and costs a walk over the whole image.
_MAX_SCANS = 100
_MAX_SEGMENTS = 10_000  # of a JPEG, scans among them; each has up to 64 KiB, and an encoder fills what it begins
# What ends a scan or begins a segment. Other markers stand alone, or decoders pass over them in the middle of data:
# neither hides a segment.
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_END, _SCAN = b"\xd9", b"\xda"

_MAX_RUN_LENGTH_PIXELS = 4_000_000  # of a run-length coded BMP, which Pillow decodes in Python: up to half a second

# Pillow warns of large sizes, which `ImageLimits` judges, and of odd EXIF, which any stranger could fill the log with.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What an image may be before it is decoded."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000  # width x height; about 200 MB once decoded
    min_side: int = 2  # pixels; a single pixel has nothing to see and is most often a tracking image
    max_side: int = 65_535  # pixels, the most of a JPEG; resizing a longer side takes more memory than its pixels


def check_bytes(data: bytes, limits: ImageLimits) -> None:
    """Refuse an image by its number of bytes alone.

    Raises:
        InvalidArgument: reason IMAGE_EMPTY or IMAGE_TOO_LARGE.
    """
    if not data:
        raise _refusal("IMAGE_EMPTY", "The image has no bytes.")
    if len(data) > limits.max_bytes:
        raise _refusal("IMAGE_TOO_LARGE", f"The image has {len(data)} bytes; at most {limits.max_bytes} are taken.")


def read_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Check and decode an image file into upright 8-bit RGB; transparency becomes white, animation its first frame.

    Raises:
        InvalidArgument: with reason IMAGE_EMPTY, IMAGE_TOO_LARGE (bytes), IMAGE_UNSUPPORTED (format),
            IMAGE_TOO_MANY_PIXELS (in all or on a side), IMAGE_TOO_SMALL or IMAGE_TRUNCATED (cut short or damaged).
    """
    check_bytes(data, limits)
    with _open(data, limits) as image:
        _check_size(image.width, image.height, limits)
        if any(tile.codec_name == "bmp_rle" for tile in image.tile):
            _check_size(image.width, image.height, replace(limits, max_pixels=_MAX_RUN_LENGTH_PIXELS))
        if image.format in ("JPEG", "MPO"):
            _check_scans(data)
        try:
            image.load()
            return turn_upright(to_rgb(image), image)
        except Exception as error:  # decoders raise whatever they like on damaged data
            raise _damaged() from error


class _CountedReads(io.BytesIO):
    """A file that fails where any image would have been read long ago."""

    _num_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._num_reads += 1
        if self._num_reads > _MAX_READS:
            raise OSError(f"more than {_MAX_READS} pieces")
        return super().read(size)


def _open(data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """Read the header only."""
    try:
        return Image.open(_CountedReads(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise _refusal("IMAGE_UNSUPPORTED", f"The image is none of {', '.join(FORMATS)}.") from error
    except Image.DecompressionBombError as error:
        raise _refusal("IMAGE_TOO_MANY_PIXELS", f"The image has more than {limits.max_pixels} pixels.") from error
    except Exception as error:  # a damaged header, in the words of one of five decoders
        raise _damaged() from error


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        message = f"The image has {width} x {height} pixels; at most {limits.max_pixels} in all are taken."
        raise _refusal("IMAGE_TOO_MANY_PIXELS", message)
    if max(width, height) > limits.max_side:
        message = f"The image has {width} x {height} pixels; each side has at most {limits.max_side}."
        raise _refusal("IMAGE_TOO_MANY_PIXELS", message)
    if min(width, height) < limits.min_side:
        message = f"The image has {width} x {height} pixels; each side needs at least {limits.min_side}."
        raise _refusal("IMAGE_TOO_SMALL", message)


def _check_scans(data: bytes) -> None:
    # Counting bytes is quick and says enough of almost every image.
    if data.count(b"\xff" + _SCAN) > _MAX_SCANS and _has_endless_scans(data):
        message = f"The image is a JPEG of more than {_MAX_SCANS} scans or {_MAX_SEGMENTS} segments."
        raise _refusal("IMAGE_UNSUPPORTED", message)


def _has_endless_scans(data: bytes) -> bool:
    """Count scans where they are, not what looks like one inside of a segment, as a thumbnail's, or behind the end."""
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


def _refusal(reason: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason, field="image")


def _damaged() -> InvalidArgument:
    return _refusal("IMAGE_TRUNCATED", "The image cannot be decoded: it is cut short or damaged.")
