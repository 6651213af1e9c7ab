"""Thousands of damaged images against a real process.

It stays up, its memory stays bounded, and other requests are served. The default is a thousand mutations.
TANDEM_FUZZ_MUTATIONS=20000 makes a long run.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chassis.errors import Code
from chassis.grpc_errors import from_rpc_error
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from processing.heif import register_heif
from tests.processing.colour_profiles import swapped
from tests.vision_service.process import TAG, Running, encode, fresh, running, values

NUM_MUTATIONS = int(os.environ.get("TANDEM_FUZZ_MUTATIONS", "1000"))
AT_ONCE = 8  # damaged images in flight, in addition to a good one
MAX_PIXELS = 4_000_000
# Beyond the memory of the warm process: twice the need of two threads that decode the largest allowed image.
CEILING_BYTES = 256 * 2**20
REJECTIONS = {"IMAGE_UNSUPPORTED", "IMAGE_TOO_MANY_PIXELS", "IMAGE_TOO_SMALL", "IMAGE_TRUNCATED"}
# Boundary values of sizes, counts and offsets.
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def real_files() -> list[bytes]:
    """Return files for every format and path through a decoder."""
    register_heif()
    y, x = np.mgrid[0:60, 0:80]
    image = Image.fromarray(np.stack([x * 3, y * 4, (x + y) * 2], -1).astype(np.uint8))
    palette = image.quantize(16)
    deep = Image.fromarray((x * 600 + y * 100).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    return [
        saved(image, "JPEG"),
        saved(image, "JPEG", progressive=True, quality=30),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "JPEG", exif=turned),
        saved(image.convert("L"), "JPEG", subsampling=0, optimize=True),
        saved(image, "PNG"),
        saved(palette, "PNG", transparency=3),
        saved(deep, "PNG"),
        saved(image.convert("RGBA"), "PNG", exif=turned),
        saved(image, "PNG", **frames),
        saved(image, "GIF"),
        saved(image, "GIF", **frames, duration=40, disposal=2),
        saved(image, "WEBP"),
        saved(image, "WEBP", lossless=True),
        saved(image, "WEBP", **frames),
        saved(image, "BMP"),
        saved(palette, "BMP"),
        saved(image.convert("RGBA"), "BMP"),
        saved(image, "JPEG", icc_profile=swapped())[:-2],
        saved(image, "PNG", icc_profile=swapped()),
        saved(image.convert("RGBA"), "WEBP", icc_profile=swapped(), exif=turned),
        saved(image, "AVIF", speed=10, icc_profile=swapped(), exif=turned),
        saved(image, "HEIF", icc_profile=swapped()),
    ]


FILES = real_files()


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """Draw a file and damage it up to four times."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "set", "number", "header", "cut", "delete", "repeat", "splice"]))
        length = max(1, len(data))
        # Put half of the damage near the start, because sizes stand there.
        at = draw(st.integers(0, min(63, length - 1)) | st.integers(0, length - 1))
        span = draw(st.integers(1, 64))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind in ("number", "header"):
            form = draw(st.sampled_from(["<H", ">H", "<I", ">I"]))
            number = struct.pack(form, draw(st.sampled_from(NUMBERS)) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
            place = at if kind == "number" else min(at, 40)
            data[place : place + len(number)] = number
        elif kind == "cut":
            del data[at:]
        elif kind == "delete":
            del data[at : at + span]
        elif kind == "repeat":
            data[at:at] = data[at : at + span] * draw(st.integers(1, 20))
        else:
            other = draw(st.sampled_from(FILES))
            data[at:] = other[draw(st.integers(0, len(other) - 1)) :]
    damaged = bytes(data) or b"\0"  # an empty file would be a request by digest
    return with_checksums(damaged) if draw(st.booleans()) else damaged


def with_checksums(data: bytes) -> bytes:
    """Repair the checksums of a PNG, so that decoding continues."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    mended, at = bytearray(data), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = tmp_path_factory.mktemp("models")
    create_checkpoint(models, TAG, RESAMPLER_PRESETS["tiny"])
    with running(models, "--tags", TAG, "--max-image-pixels", str(MAX_PIXELS), "--cache-bytes", "1000000") as process:
        yield process


def memory_bytes(service: Running, name: str) -> int:
    """Return 'VmRSS' (current memory) or 'VmHWM' (peak memory)."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))


def check_outcome(call: Any) -> bool:
    """Return whether the image was encoded.

    Fail on any other outcome than finite tokens or a rejection of the image.
    """
    try:
        [response] = call
    except grpc.RpcError as rpc_error:
        error = from_rpc_error(rpc_error)
        assert (error.code, error.reason in REJECTIONS) == (Code.INVALID_ARGUMENT, True), repr(error)
        assert "0x" not in error.message
        return False
    assert np.isfinite(values(response)).all()
    return True


@pytest.mark.slow
@pytest.mark.timeout(0)  # the long run has no limit, but every call has its own
def test_damaged_images_do_not_affect_other_requests(service: Running) -> None:
    bystander = FILES[0]
    alone = values(encode(service.stub, fresh(bystander), timeout=20))
    largest = saved(Image.new("RGB", (2000, 2000)), "PNG")
    for file in (*FILES, largest, largest):
        encode(service.stub, fresh(file), timeout=20)
    ceiling = memory_bytes(service, "VmRSS") + CEILING_BYTES
    outcomes: list[bool] = []

    @given(images=st.lists(mutations(), min_size=AT_ONCE, max_size=AT_ONCE))
    @settings(
        max_examples=-(-NUM_MUTATIONS // AT_ONCE),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    def run(images: list[bytes]) -> None:
        calls = [
            service.stub.Encode(fresh(image), timeout=20) for image in images if image
        ]  # an empty file would be a request by digest
        good = service.stub.Encode(fresh(bystander), timeout=20)
        outcomes.extend(check_outcome(call) for call in calls)
        # A batch of another size rounds differently, by a step of bfloat16.
        np.testing.assert_allclose(values(next(good)), alone, atol=0.01 * np.abs(alone).max())
        assert memory_bytes(service, "VmHWM") < ceiling
        assert service.process.poll() is None

    run()
    peak = memory_bytes(service, "VmHWM")
    assert len(outcomes) >= NUM_MUTATIONS
    assert 0.02 < sum(outcomes) / len(outcomes) < 0.98  # both outcomes were frequent
    print(f"\n{len(outcomes)} mutations, {sum(outcomes)} encoded; peak {peak / 2**20:.0f} MiB of {ceiling / 2**20:.0f}")
