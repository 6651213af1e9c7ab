"""Decoding stays within its memory, which all decoders share."""

import asyncio
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chassis.errors import InvalidArgument
from checkpoint.families import VisionConfig
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from processing.square_images import SquareImages
from tests.processing.colour_profiles import swapped
from tests.vision_service.image_samples import LIMITS, rejection, saved
from tests.vision_service.process import TAG, encode, fresh, running
from vision_service.decode_pool import DecodePool
from vision_service.image_reader import BYTES_PER_PIXEL, FILE_COPIES, decoded_image
from vision_service.memory_budget import MemoryBudget

SIDE = 1024
_MEASURE = """
import ctypes
import sys
from pathlib import Path
from tests.own_peak import forget_peak, peak_bytes
from vision_service.image_reader import ImageLimits, read_image

for large in sorted(Path(sys.argv[1]).glob("large *")):
    read_image(large.with_name(large.name.replace("large", "small")).read_bytes(), ImageLimits())  # loads the decoder
    data = large.read_bytes()
    ctypes.CDLL(None).malloc_trim(0)  # returns what earlier images freed
    before = forget_peak()
    image = read_image(data, ImageLimits())
    print(large.name.removeprefix("large "), peak_bytes() - before, sep=":")
    del image
"""


def costly(side: int) -> dict[str, bytes]:
    """Return files that need much memory.

    They have colour profile, opacity and orientation where their format has them.
    """
    noise = Image.effect_noise((side, side), 60)
    smooth = Image.linear_gradient("L").resize((side, side)).convert("RGBA")  # encoders of videos are slow with noise
    smooth.putalpha(200)
    rgb = Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180)))
    rgba = rgb.copy()
    rgba.putalpha(noise)
    turned = Image.Exif()
    turned[0x0112] = 6
    more = {"exif": turned, "icc_profile": swapped()}
    jpeg = {"progressive": True, "subsampling": 0, **more}
    return {
        "JPEG": saved(rgb, "JPEG", **jpeg),
        "JPEG without an end": saved(rgb.convert("CMYK"), "JPEG", progressive=True, exif=turned)[:-2],
        "PNG": saved(rgba, "PNG", compress_level=1, **more),
        "PNG of 16 bits": saved(Image.fromarray(np.asarray(noise, np.uint16) << 8), "PNG", compress_level=1, **more),
        "WEBP": saved(rgba, "WEBP", lossless=True, method=0, quality=0, **more),
        "WEBP animation": saved(rgb, "WEBP", method=0, save_all=True, append_images=[rgb.rotate(90)]),
        "GIF": saved(noise.quantize(64), "GIF", transparency=3),
        "BMP": saved(rgba, "BMP"),
        "AVIF": saved(smooth, "AVIF", speed=10, quality=30, **more),
        "HEIF": saved(smooth, "HEIF", quality=30, **more),
    }


@pytest.mark.slow
def test_no_format_takes_more_memory_than_is_reserved(tmp_path: Path) -> None:
    for size, side in (("small", 32), ("large", SIDE)):
        for name, data in costly(side).items():
            (tmp_path / f"{size} {name}").write_bytes(data)
    run = subprocess.run([sys.executable, "-c", _MEASURE, tmp_path], capture_output=True, text=True, check=True)
    measured = {name: int(num_bytes) for name, num_bytes in (line.split(":") for line in run.stdout.splitlines())}
    assert {name.split()[0] for name in measured} == set(BYTES_PER_PIXEL)
    for name, num_bytes in measured.items():
        file_bytes = (tmp_path / f"large {name}").stat().st_size
        reserved = SIDE**2 * BYTES_PER_PIXEL[name.split()[0]] + file_bytes * FILE_COPIES
        print(f"{name}: {num_bytes / SIDE**2:.1f} of {reserved / SIDE**2:.1f} bytes per pixel")
        assert 2 * SIDE**2 < num_bytes <= reserved, name


@pytest.mark.slow
def test_small_files_of_many_pixels_do_not_fill_the_memory_of_a_service(tmp_path: Path) -> None:
    """Six such files once took a service 2 GiB."""
    create_checkpoint(tmp_path, TAG, RESAMPLER_PRESETS["tiny"])
    files = [saved(Image.new("RGB", (3000, 3000), (number, 0, 0)), "WEBP", lossless=True) for number in range(8)]
    budget = 256 * 2**20  # one of them takes 240 MiB
    options = ("--tags", TAG, "--decode-processes", "4", "--decode-memory-bytes", str(budget))
    with running(tmp_path, *options) as service:
        process_id = service.process.pid

        def resident_bytes() -> int:
            decoders = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
            pages = (int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in (process_id, *decoders))
            return sum(pages) * resource.getpagesize()

        for _ in range(4):
            encode(service.stub, fresh(saved(Image.new("RGB", (32, 32)), "WEBP")), timeout=60)
        before, peak, ended = resident_bytes(), 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.002):
                peak = max(peak, resident_bytes())

        watching = threading.Thread(target=watch)
        watching.start()
        calls = [service.stub.Encode(fresh(data), timeout=60) for data in files]
        assert all(len(list(call)) == 1 for call in calls)
        ended.set()
        watching.join()
        print(f"{(peak - before) / 2**20:.0f} MiB at most, of {budget / 2**20:.0f} MiB")
        assert 32 * 2**20 < peak - before < budget + 128 * 2**20


def test_an_image_beyond_the_memory_is_refused_with_a_size_that_fits() -> None:
    data = saved(Image.new("RGB", (100, 100)), "WEBP")
    budget = MemoryBudget(9000 * BYTES_PER_PIXEL["WEBP"] + len(data) * FILE_COPIES)
    with pytest.raises(InvalidArgument, match="memory for 9000 in this format") as caught:
        decoded_image(data, LIMITS, budget).__enter__()
    assert caught.value.reason == "IMAGE_TOO_MANY_PIXELS"
    assert rejection(saved(Image.new("RGB", (7300, 7300)), "PNG")).reason == "IMAGE_TOO_MANY_PIXELS"  # of the pixels


def test_threads_share_the_budget() -> None:
    budget, used, peaks, lock = MemoryBudget(100), 0, [], threading.Lock()

    def work(num_bytes: int) -> None:
        nonlocal used
        for _ in range(20):
            with budget.reserve(num_bytes):
                with lock:
                    used += num_bytes
                    peaks.append(used)
                time.sleep(0.0002)
                with lock:
                    used -= num_bytes

    threads = [threading.Thread(target=work, args=[num_bytes]) for num_bytes in (100, 60, 40, 30, 10, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert (used, max(peaks)) == (0, 100)


def test_a_large_reservation_is_not_overtaken_for_ever() -> None:
    budget, order = MemoryBudget(10), []

    def reserve(name: str, num_bytes: int) -> threading.Thread:
        def work() -> None:
            with budget.reserve(num_bytes):
                order.append(name)

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.05)
        return thread

    with budget.reserve(5):
        threads = [reserve("large", 10), reserve("small", 1)]
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == ["large", "small"]


async def test_a_pool_decodes_images_one_after_another_if_memory_is_short() -> None:
    data = saved(Image.new("RGB", (64, 64), "red"), "PNG")
    memory_bytes = 64 * 64 * BYTES_PER_PIXEL["PNG"] + len(data) * FILE_COPIES
    pool = DecodePool(num_processes=4, max_pending=16, limits=LIMITS, memory_bytes=memory_bytes)
    images = SquareImages(VisionConfig(), num_visual_tokens=32)
    decoded = await asyncio.gather(*(pool.decode(data, images) for _ in range(8)))
    assert len(decoded) == 8
    pool.close()
