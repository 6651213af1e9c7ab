"""The compiled part of the package; everything else about it is in pyproject.toml."""

from setuptools import Extension, setup

KERNELS = "language_service/kernels"

setup(
    ext_modules=[
        Extension(
            # Plain functions called by address, no module of Python's.
            "language_service.kernels._native",
            sources=[f"{KERNELS}/{name}.cpp" for name in ("attention", "layers", "linear", "rows")],
            depends=[f"{KERNELS}/{name}.h" for name in ("bf16", "kernels", "packing", "pool", "tile")],
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
    ]
)
