"""Drop the metadata of image files before a decoder reads them.

Metadata may be large, damaged or costly: decoders decompress the texts of a PNG, and join the EXIF segments of a JPEG
in quadratic time. Only the pieces that change pixels stay: orientation, colour profile and transparency.
"""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from chassis.errors import InvalidArgument

MAX_PROFILE_BYTES = 2**20  # larger colour profiles are ignored. Those of cameras and screens have a few kilobytes

_MAX_CHUNKS = 100_000  # of a PNG. Encoders fill chunks of at least 4 KiB
_MAX_SEGMENTS = 10_000  # of a JPEG before its first scan. Encoders fill segments of up to 64 KiB

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_NEEDED = (b"IHDR", b"PLTE")  # chunks
_OPTIONAL = (b"iCCP", b"tRNS", b"eXIf")  # left out if damaged
_GREY, _COLOUR = 0, 2  # colour types
_HEADER_BYTES = 25  # of a PNG's first chunk

_JPEG = b"\xff\xd8\xff"
JPEG_END = b"\xff\xd9"
_BOX_BYTES = 8  # size and kind of a box, of which AVIF and HEIC consist
_MAX_BOXES = 16  # before that of the metadata, which is most often the second
# Markers that end a scan or begin a segment. All others stand alone, or decoders skip them.
_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_END, _SCAN, _COMMENT, _FIRST_APP, _LAST_APP = 0xD9, 0xDA, 0xFE, 0xE0, 0xEF
_MIN_SEGMENT_BYTES = 16  # of JFIF and Adobe. Shorter ones are damaged
_JFIF, _EXIF, _ADOBE, _PROFILE = b"\xe0JFIF", b"\xe1Exif\0\0", b"\xeeAdobe", b"\xe2ICC_PROFILE\0"


class BareImage(NamedTuple):
    """An image file without metadata, and its EXIF apart."""

    data: bytes
    exif: bytes | None = None  # of a PNG or JPEG. Decoders refuse some images for damage in it
    lacks_end: bool = False  # a JPEG without the marker of its end


def without_metadata(data: bytes) -> BareImage:
    """Return an image file without metadata.

    WebP, GIF and BMP stay unchanged: their decoders read metadata in linear time and decompress none.

    Raises:
        InvalidArgument: reason 'IMAGE_UNSUPPORTED', the file has too many pieces.
    """
    if data.startswith(_PNG):
        return _bare_png(data)
    if data.startswith(_JPEG):
        return _bare_jpeg(data)
    if data[4:8] == b"ftyp":
        return BareImage(_without_exif_item(data))
    return BareImage(data)


def too_many_pieces(kind: str) -> InvalidArgument:
    """Return the error of a file with many pieces."""
    message = f"The {kind} is made of too many small pieces, save the image again."
    return InvalidArgument(message, reason="IMAGE_UNSUPPORTED", field="image")


def _without_exif_item(data: bytes) -> bytes:
    """Return an AVIF or HEIC whose EXIF is nothing known.

    Its orientation is a property of the image, and a decoder refuses damaged EXIF.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"meta":
            return data[:at] + data[at : at + size].replace(b"Exif", b"none") + data[at + size :]
        at += max(size, _BOX_BYTES)
    return data


def _bare_png(data: bytes) -> BareImage:
    """Return a PNG with its header and pixels.

    A chunk of pixels that the end of the file cuts short is the last one.
    """
    kept: dict[bytes, bytes] = {}  # the first chunk of a kind. Further ones are not even checked, which could take long
    pixels: list[bytes] = []
    end = _PNG_END
    for kind, chunk in _png_chunks(data):
        if kind == b"IDAT":
            pixels.append(chunk)
            if len(chunk) < 12 + int.from_bytes(chunk[:4], "big"):
                end = b""
        elif kind in _NEEDED or kind in _OPTIONAL:
            kept.setdefault(kind, chunk)
    for kind in _OPTIONAL:
        if kind in kept and not _is_sound(kind, kept[kind]):
            del kept[kind]
    if b"tRNS" in kept and len(kept.get(b"IHDR", b"")) == _HEADER_BYTES:
        kept[b"tRNS"] = _scaled_transparency(kept[b"tRNS"], kept[b"IHDR"])
    header = [kept[kind] for kind in (b"IHDR", b"iCCP", b"PLTE", b"tRNS") if kind in kept]
    exif = kept.get(b"eXIf")
    return BareImage(b"".join([_PNG, *header, *pixels, end]), exif[8:-4] if exif else None)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and bytes of each chunk."""
    at = len(_PNG)
    for _ in range(_MAX_CHUNKS):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield kind, data[at:end]
        at = end
    raise too_many_pieces("PNG")


def _is_sound(kind: bytes, chunk: bytes) -> bool:
    """Return whether a decoder will read an optional chunk."""
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    if kind != b"iCCP":
        return True
    _name, _, compressed = chunk[8:-4].partition(b"\0")
    inflate = zlib.decompressobj()
    try:  # the first byte is the method, of which there is one
        profile = inflate.decompress(compressed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return False
    return compressed[:1] == b"\0" and bool(profile) and not inflate.unconsumed_tail


def _scaled_transparency(chunk: bytes, header: bytes) -> bytes:
    """Return the transparent colour at the depth of decoded pixels.

    Returns nothing if it is cut short. Pillow scales pixels to 8 bits and leaves this colour as it is, so it would not
    match. Only 16-bit grey keeps its depth.
    """
    depth, colour_type = header[16], header[17]
    values = [int.from_bytes(chunk[at : at + 2], "big") for at in range(8, len(chunk) - 5, 2)]
    if len(values) < {_GREY: 1, _COLOUR: 3}.get(colour_type, 0):
        return b""
    if colour_type == _GREY and depth in (2, 4):
        values = [value * 255 // (2**depth - 1) & 255 for value in values]
    elif colour_type == _COLOUR and depth == 16:
        values = [value >> 8 for value in values]
    else:
        return chunk
    content = b"tRNS" + b"".join(value.to_bytes(2, "big") for value in values)
    return (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")


def _bare_jpeg(data: bytes) -> BareImage:
    """Return a JPEG with the segments that its pixels need."""
    pieces = [data[:2]]
    profile_bytes = 0
    exif: bytes | None = None
    for kind, start, end in _jpeg_segments(data):
        if kind == _SCAN:
            pieces.append(data[start:])
            return BareImage(b"".join(pieces), exif, lacks_end=data.find(JPEG_END, end) < 0)
        head = data[start + 1 : start + 2] + data[start + 4 : start + 16]
        if head.startswith(_PROFILE):
            profile_bytes += end - start
            keep = profile_bytes <= MAX_PROFILE_BYTES
        elif head.startswith(_EXIF):
            keep = False
            exif = exif or data[start + 4 : end]  # the first segment has the orientation
        else:
            is_colour_model = head.startswith((_JFIF, _ADOBE)) and end - start >= _MIN_SEGMENT_BYTES
            keep = is_colour_model or not (_FIRST_APP <= kind <= _LAST_APP or kind == _COMMENT)
        if keep:
            pieces.append(data[start:end])
    return BareImage(b"".join(pieces))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker = _SEGMENT.search(data, at)
        if marker is None or marker[1][0] == _END:
            return
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        yield marker[1][0], marker.start(), at
    raise too_many_pieces("JPEG")
