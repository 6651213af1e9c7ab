"""Run the kernels of emulated processors, and of another compiler."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from language_service.kernels.library import SETS

pytestmark = pytest.mark.timeout(900)  # compilers and QEMU need minutes on a busy machine

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "language_service" / "kernels"
NAMES = ("attention", "cpu", "linear", "low_bit", "pool", "rows")
SOURCES = [*(KERNELS / f"{name}.cpp" for name in NAMES), HERE / "check_set.cpp", HERE / "check_low_bit.cpp"]
FLAGS = ["-std=c++20", "-O2", "-g0", "-pthread", "-Wno-ignored-attributes", f"-I{KERNELS}", f"-I{HERE}"]
AVX2 = ["-mavx2", "-mfma"]
AVX512BF16 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "bf16", "vnni"))]
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="this is another processor")
OPERATIONS = ["linear", "rows", "attention", "low_bit"]


def check(folder: Path, compiler: str, flags: Sequence[str], runner: Sequence[str] = ()) -> list[str]:
    """Build and run `check_set.cpp`.

    Returns the sets that the processor can run.
    """
    for needed in (compiler, *runner[:1]):
        if shutil.which(needed) is None:
            pytest.skip(f"there is no {needed}")

    def build(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        exact = ["-ffp-contract=off"] if "low_bit" in source.stem else []  # as in setup.py
        subprocess.run([compiler, *FLAGS, *exact, *flags, "-c", source, "-o", target], check=True, timeout=300)
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
@pytest.mark.parametrize("processor", [pytest.param("max", marks=pytest.mark.slow), "neoverse-n1"])
def test_neon_gives_the_right_numbers(processor: str, tmp_path: Path) -> None:
    runner = ["qemu-aarch64-static", "-cpu", processor]
    runnable = ["neonbf16", "neon"] if processor == "max" else ["neon"]
    assert check(tmp_path, "aarch64-linux-gnu-g++", ["-DTANDEM_SET=neon"], runner) == runnable


@pytest.mark.kernels
def test_products_of_small_matrices_give_the_right_numbers(tmp_path: Path) -> None:
    """BFMMLA and SMMLA of Arm."""
    runner = ["qemu-aarch64-static", "-cpu", "max"]
    flags = ["-DTANDEM_SET=neonbf16", "-march=armv8.2-a+dotprod+bf16+i8mm"]
    assert check(tmp_path, "aarch64-linux-gnu-g++", flags, runner) == ["neonbf16", "neon"]


@pytest.mark.kernels
@ON_X86
def test_avx2_needs_no_newer_instructions(tmp_path: Path) -> None:
    """Haswell was the first processor with AVX2."""
    runner = ["qemu-x86_64-static", "-cpu", "Haswell"]
    assert check(tmp_path, "g++", ["-DTANDEM_SET=avx2", *AVX2], runner) == ["avx2"]


@pytest.mark.kernels
@pytest.mark.slow
@ON_X86
@pytest.mark.parametrize(
    ("name", "flags", "needed"), [("avx2", AVX2, "avx2"), ("avx512bf16", AVX512BF16, "avx512_bf16")]
)
def test_kernels_of_clang_give_the_right_numbers(name: str, flags: list[str], needed: str, tmp_path: Path) -> None:
    if needed not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("this processor lacks the instructions")
    assert name in check(tmp_path, "clang++", [f"-DTANDEM_SET={name}", *flags])


@pytest.mark.kernels
@pytest.mark.slow
@ON_X86
def test_clang_builds_every_set(tmp_path: Path) -> None:
    """A set unknown to the compiler would be missing."""
    if shutil.which("clang++") is None:
        pytest.skip("there is no clang++")
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    environment = {**os.environ, "CC": "clang", "CXX": "clang++"}
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", *folders],
        cwd=KERNELS.parents[1],
        env=environment,
        check=True,
        timeout=900,
    )
    [built] = (tmp_path / "lib" / "language_service" / "kernels").glob("_native.*")
    opened = ctypes.CDLL(str(built))
    expected = {name for name in SETS if not name.startswith("neon")}
    assert {name for name in SETS if hasattr(opened, f"tandem_low_bit_{name}")} == expected
