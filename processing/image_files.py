"""Open image files of untrusted clients, and decode them.

Opening reads format and size from the header only. The content alone decides on the format. Messages of the decoders
are not passed on, because they contain addresses.
"""

import hashlib
import io
import warnings

from PIL import Image, ImageFile, UnidentifiedImageError

from chassis.errors import InvalidArgument, ResourceExhausted
from processing.heif import register_heif
from processing.image_metadata import JPEG_END, too_many_pieces, without_metadata
from processing.images import is_turned, to_rgb, turn_upright

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", *register_heif())  # as Pillow names them
_NAMES = tuple("HEIC" if name == "HEIF" else name for name in FORMATS)  # as users know them

# A photo takes about ten thousand reads, a large run-length encoded BMP hundreds of thousands. A malicious file can
# take many millions, each of them a call in Python.
_MAX_READS = 1_000_000

# First bytes by format. AVIF and HEIC name themselves after the size of their first box.
_FIRST_BYTES = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"RIFF": "WEBP"}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"hevc": "HEIC"}
_FILLER = bytes(range(0xFE, 0, -1))  # data of a scan without a marker. Decoders invent zeros, so it begins with ones
_BAND_ROWS = 64
_RETRY_AFTER_S = 1.0

# Pillow warns of large sizes, which the vision service checks, and of odd EXIF, with which clients could flood the log.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image_file(data: bytes) -> ImageFile.ImageFile:
    """Read the header of an image file.

    Raises:
        InvalidArgument: reason 'IMAGE_EMPTY', 'IMAGE_UNSUPPORTED' (format, or too many pieces),
            'IMAGE_TOO_MANY_PIXELS' or 'IMAGE_TRUNCATED' (truncated or damaged).
    """
    if not data:
        raise rejected_image("IMAGE_EMPTY", "The image has no bytes.")
    bare = without_metadata(data)
    kind = _kind(data)
    try:
        image = Image.open(_Source(bare.data, kind, lacks_end=bare.lacks_end), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise damaged_image(kind) if kind in _NAMES else _unsupported() from error
    except Exception as error:  # a damaged header, which each decoder reports with its own errors
        raise _decoding_error(error, kind) from error
    if bare.exif is not None:
        image.info["exif"] = bare.exif
    return image


def upright_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an image file, upright.

    Raises as `open_image_file`.
    """
    with open_image_file(data) as image:
        return (image.height, image.width) if is_turned(image) else (image.width, image.height)


def load_upright(image: Image.Image) -> Image.Image:
    """Decode an opened image into upright 8-bit sRGB.

    Transparent pixels become white. An animation becomes its first frame.

    Raises:
        InvalidArgument: reason 'IMAGE_TRUNCATED' (truncated or damaged), 'IMAGE_UNSUPPORTED' (too many pieces) or
            'IMAGE_TOO_MANY_PIXELS'.
        ResourceExhausted: reason 'NO_MEMORY'.
    """
    source, frame = getattr(image, "fp", None), _frame(image)
    kind = source.kind if isinstance(source, _Source) else "image"
    try:
        expected = _digest_with_filler(source) if isinstance(source, _Source) and source.lacks_end else None
        image.load()
        if expected is not None and _digest(image) != expected:
            raise damaged_image(kind)
        return turn_upright(_on_canvas(to_rgb(image), frame), image)
    except Exception as error:  # decoders raise many types of errors on damaged data
        raise _decoding_error(error, kind) from error


def rejected_image(reason: str, message: str) -> InvalidArgument:
    """Return the error of an image that is not accepted."""
    return InvalidArgument(message, reason=reason, field="image")


def damaged_image(kind: str = "image") -> InvalidArgument:
    """Return the error of an image that cannot be decoded."""
    return rejected_image("IMAGE_TRUNCATED", f"The {kind} is truncated or damaged, send a complete file.")


class _TooManyReadsError(Exception):
    """Raised for a file that takes millions of reads."""


class _Source(io.BytesIO):
    """A file without metadata, whose reads are counted."""

    def __init__(self, data: bytes, kind: str, *, lacks_end: bool = False) -> None:
        self.kind = kind
        self.lacks_end = lacks_end
        self.data = data.removesuffix(JPEG_END[:1]) if lacks_end else data
        self._num_reads = 0
        super().__init__(self.data + JPEG_END if lacks_end else data)

    def read(self, size: int | None = -1) -> bytes:
        self._num_reads += 1
        if self._num_reads > _MAX_READS:
            raise _TooManyReadsError
        return super().read(size)


def _kind(data: bytes) -> str:
    """Return the format that the first bytes name, or 'image'."""
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "image")
    return next((kind for start, kind in _FIRST_BYTES.items() if data.startswith(start)), "image")


def _unsupported() -> InvalidArgument:
    return rejected_image("IMAGE_UNSUPPORTED", f"The format is not supported, send {', '.join(_NAMES)}.")


def _decoding_error(error: Exception, kind: str) -> InvalidArgument | ResourceExhausted:
    """Return the error for the caller."""
    match error:
        case InvalidArgument():
            return error
        case _TooManyReadsError():
            return too_many_pieces(kind)
        case Image.DecompressionBombError():
            return rejected_image("IMAGE_TOO_MANY_PIXELS", "The image has too many pixels, send a smaller one.")
        case MemoryError():
            message = "There is too little memory to decode this image now, retry later."
            return ResourceExhausted(message, reason="NO_MEMORY", retry_after_s=_RETRY_AFTER_S)
    return damaged_image(kind)


def _frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the part of the canvas below the frame.

    None if it covers all. Only a GIF can have a smaller frame.
    """
    tiles = getattr(image, "tile", None)
    if image.format != "GIF" or not tiles:
        return None
    left, top, right, bottom = tiles[0].extents
    return None if (left, top, right, bottom) == (0, 0, *image.size) else (left, top, right, bottom)


def _on_canvas(rgb: Image.Image, frame: tuple[int, int, int, int] | None) -> Image.Image:
    """Return an image that is white beyond its frame."""
    if frame is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb.crop(frame), frame)
    return white


def _digest_with_filler(source: _Source) -> bytes:
    """Return the digest of a JPEG that filler follows.

    A decoder invents what is missing from the bytes that follow. So only a JPEG that misses nothing else has the same
    pixels with the filler as without.
    """
    with Image.open(_Source(source.data + _FILLER + JPEG_END, source.kind), formats=("JPEG",)) as image:
        image.load()
        return _digest(image)


def _digest(image: Image.Image) -> bytes:
    """Return a digest of the pixels, without copying all."""
    digest = hashlib.sha256()
    for top in range(0, image.height, _BAND_ROWS):
        digest.update(image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height))).tobytes())
    return digest.digest()
