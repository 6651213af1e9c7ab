"""The compiled part of the package; everything else about it is in pyproject.toml."""

from setuptools import Extension, setup

KERNELS = "language_service/kernels"
HEADERS = [f"{KERNELS}/{name}.h" for name in ("bf16", "kernels", "packing", "pool", "tile")]


def kernels(room: str, sources: list[str]) -> Extension:
    """Return a library of plain functions, called by address. It is no module of Python's."""
    return Extension(
        f"{room}.kernels._native",
        sources=[f"{room}/kernels/{name}.cpp" for name in sources],
        depends=HEADERS,
        include_dirs=[KERNELS],
        language="c++",
        extra_compile_args=[
            "-std=c++20",
            "-O3",
            "-pthread",
            *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "bf16")),
            "-Wno-uninitialized",  # gcc 12 warns of its own intrinsics
            "-Wno-maybe-uninitialized",
        ],
        extra_link_args=["-pthread"],
        optional=True,  # without a compiler, or for another processor, torch computes the same
    )


setup(
    ext_modules=[
        kernels("language_service", ["attention", "layers", "linear", "rows"]),
        kernels("vision_service", ["attention"]),
    ]
)
