"""The compiled part of the package; everything else about it is in pyproject.toml."""

import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNELS = "language_service/kernels"
ONCE = [f"{KERNELS}/cpu.cpp", f"{KERNELS}/pool.cpp"]  # for any processor
FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-pthread",
    "-Wno-uninitialized",  # gcc 12 warns of its own intrinsics
    "-Wno-maybe-uninitialized",
    "-Wno-ignored-attributes",
]

AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl"))]
AVX512BF16 = [*AVX512, "-mavx512bf16", "-mavx512vnni"]
AMX = [*AVX512BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8", "-DTANDEM_TILES"]
# Instruction sets and their flags. Each one has the instructions of those before it: if the linker finds a function of
# the standard library in several, it takes the first, and that one runs everywhere.
SETS = {
    "x86_64": {"avx2": AVX2, "avx512": AVX512, "avx512bf16": AVX512BF16, "amx": AMX},
    "aarch64": {"neon": [], "neonbf16": ["-march=armv8.2-a+dotprod+bf16+i8mm"]},
}


# Flags of one source. Without contraction of a * b + c, low-bit products are rounded alike for every instruction set.
SOURCE_FLAGS = {"low_bit": ["-ffp-contract=off"]}


class Kernels(Extension):
    """A library of plain functions, called by address. It is no module of Python's."""

    def __init__(self, room: str, sources: list[str], only: str = "") -> None:
        """Compile `sources` once for each instruction set, or for `only` one."""
        super().__init__(
            f"{room}.kernels._native",
            sources=ONCE,
            depends=[str(path) for path in Path(KERNELS).glob("*.h")],
            include_dirs=[KERNELS],
            language="c++",
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            optional=True,  # without a compiler, or for another processor, torch computes the same
        )
        self.per_set = [f"{room}/kernels/{name}.cpp" for name in sources]
        sets = SETS.get(platform.machine(), {})
        self.sets = {name: flags for name, flags in sets.items() if only in ("", name)}


class BuildKernels(build_ext):
    """Compiles the kernels of each instruction set that the compiler knows."""

    def build_extension(self, ext: Kernels) -> None:
        """Compile and link one library."""
        jobs = [(name, source) for name in ext.sets for source in ext.per_set]
        for name, source in jobs:  # two threads may not make the same folder
            Path(self.build_temp, name, source).parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            built = list(pool.map(lambda job: self._compile(ext, *job), jobs))
        unknown = {name for (name, _), objects in zip(jobs, built, strict=True) if objects is None}
        for name in sorted(unknown):
            print(f"kernels: this compiler does not know {name}", file=sys.stderr)
        if unknown == ext.sets.keys():
            raise CompileError("no kernels for this processor or compiler")
        ext.extra_objects = [
            path for (name, _), objects in zip(jobs, built, strict=True) if name not in unknown for path in objects
        ]
        ext.depends = [*ext.depends, *ext.per_set]
        super().build_extension(ext)

    def _compile(self, ext: Kernels, name: str, source: str) -> list[str] | None:
        try:
            return self.compiler.compile(
                [source],
                output_dir=str(Path(self.build_temp, name)),
                macros=[("TANDEM_SET", name)],
                include_dirs=ext.include_dirs,
                extra_postargs=[*FLAGS, *ext.sets[name], *SOURCE_FLAGS.get(Path(source).stem, [])],
                depends=ext.depends,
            )
        except CompileError:
            return None


setup(
    ext_modules=[
        Kernels("language_service", ["attention", "layers", "linear", "low_bit", "rows"]),
        Kernels("vision_service", ["attention"], only="avx512bf16"),
    ],
    cmdclass={"build_ext": BuildKernels},
)
