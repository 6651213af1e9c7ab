"""ICC profiles for tests, made of the sRGB profile of Little CMS."""

import struct

from PIL import ImageCms

SRGB: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

_DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))


def with_primaries(red: bytes, green: bytes, blue: bytes) -> bytes:
    """Return the sRGB profile with other primaries, as XYZ tags."""
    profile = bytearray(SRGB)
    for tag, value in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue)):
        at = _offset(tag)
        profile[at : at + len(value)] = value
    return bytes(profile)


def display_p3() -> bytes:
    """Return the colour space of phones and laptops."""
    return with_primaries(*(_tag(xyz) for xyz in _DISPLAY_P3))


def swapped() -> bytes:
    """Return sRGB with red and blue swapped."""
    red, green, blue = (SRGB[_offset(tag) :][:20] for tag in (b"rXYZ", b"gXYZ", b"bXYZ"))
    return with_primaries(blue, green, red)


def _tag(xyz: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in xyz)


def _offset(tag: bytes) -> int:
    """Return where the value of a tag begins."""
    (number,) = struct.unpack_from(">I", SRGB, 128)
    for index in range(number):
        name, offset, _size = struct.unpack_from(">4sII", SRGB, 132 + 12 * index)
        if name == tag:
            return int(offset)
    raise KeyError(tag)
