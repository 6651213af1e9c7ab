"""The kernels of each instruction set that this processor has."""

from typing import Any

import pytest

from language_service.kernels import library
from language_service.kernels.library import SETS, NativeLibrary, SetName, open_library
from language_service.kernels.native import NativeKernels

RUNNABLE: list[Any] = [name for name in SETS if library.library(name) is not None]
ONE_SKIP = pytest.param("none", marks=pytest.mark.skip(reason="no native kernels can run here"))


@pytest.fixture(params=RUNNABLE or [ONE_SKIP])
def native(request: pytest.FixtureRequest) -> NativeLibrary:
    """Return the kernels of an instruction set."""
    name: SetName = request.param
    return open_library(name)


@pytest.fixture
def kernels(native: NativeLibrary) -> NativeKernels:
    """Return the same as `Kernels`."""
    return NativeKernels(native)
