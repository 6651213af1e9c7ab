"""Run the kernels of other processors by emulation."""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "language_service" / "kernels"
NAMES = ("attention", "cpu", "linear", "pool", "rows")
SOURCES = [*(KERNELS / f"{name}.cpp" for name in NAMES), HERE / "check_set.cpp"]
FLAGS = ["-std=c++20", "-O2", "-g0", "-pthread", "-Wno-ignored-attributes", f"-I{KERNELS}", f"-I{HERE}"]
AVX2 = ["-mavx2", "-mfma"]
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this is another processor")
OPERATIONS = ["linear", "rows", "attention"]


def check(folder: Path, compiler: str, flags: Sequence[str], runner: Sequence[str] = ()) -> list[str]:
    """Build and run `check_set.cpp`.

    Returns the sets that the processor can run.
    """
    for needed in (compiler, *runner[:1]):
        if shutil.which(needed) is None:
            pytest.skip(f"there is no {needed}")

    def build(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([compiler, *FLAGS, *flags, "-c", source, "-o", target], check=True, timeout=300)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, SOURCES))
    program = folder / "check"
    static = ["-static"] if runner else []  # QEMU has no libraries of the other processor
    subprocess.run([compiler, "-pthread", *static, *objects, "-o", program], check=True, timeout=300)
    done = subprocess.run([*runner, program], stdout=subprocess.PIPE, text=True, timeout=300)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-len(OPERATIONS) :]) == (0, OPERATIONS), done.stdout
    return lines[: -len(OPERATIONS)]


@pytest.mark.slow
@ON_X86
def test_tiles_in_plain_code_give_the_same_numbers_in_every_batch(tmp_path: Path) -> None:
    """The loops of AMX, with its instructions written out."""
    compiler = shutil.which("c++") or "g++"
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    check(tmp_path, compiler, ["-DTANDEM_SET=amx", *AVX2, "-DTANDEM_TILES", "-DTANDEM_EMULATED_TILES"])


@pytest.mark.kernels
@pytest.mark.parametrize("processor", ["max", "neoverse-n1"])
def test_neon_gives_the_right_numbers(processor: str, tmp_path: Path) -> None:
    runner = ["qemu-aarch64-static", "-cpu", processor]
    assert check(tmp_path, "aarch64-linux-gnu-g++", ["-DTANDEM_SET=neon"], runner) == ["neon"]


@pytest.mark.kernels
@ON_X86
def test_avx2_needs_no_newer_instructions(tmp_path: Path) -> None:
    """Haswell was the first processor with AVX2."""
    runner = ["qemu-x86_64-static", "-cpu", "Haswell"]
    assert check(tmp_path, "g++", ["-DTANDEM_SET=avx2", *AVX2], runner) == ["avx2"]
