"""Kernels are chosen by the processor, the model and the setting."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chassis import native_library
from language_service.kernels import library
from language_service.kernels.choice import choose_kernels
from language_service.kernels.library import SETS, NativeLibrary
from tests.language_service.small import CONFIG, CPU, WIDE

FLAGS = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512bf16": {"avx512_bf16", "avx512_vnni"},
    "amx": {"amx_tile", "amx_bf16", "amx_int8"},
}


@pytest.fixture
def none_built(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the compiled library."""
    cached = (library.open_library, library.library, library.fastest)
    for function in cached:
        function.cache_clear()
    monkeypatch.setattr(native_library, "find_spec", lambda _name: None)
    yield
    for function in cached:
        function.cache_clear()


def test_the_instructions_are_those_that_the_system_reports(native: NativeLibrary) -> None:
    """Linux lists what the processor has and the system saves."""
    listed = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "flags" not in listed:
        pytest.skip("the system lists no flags")
    has = set(listed.partition("flags")[2].partition(":")[2].partition("\n")[0].split())
    needed: set[str] = set()
    for name, flags in FLAGS.items():
        needed |= flags
        if needed <= has:
            assert native_library.open_native_library("language_service.kernels").tandem_can_run(name.encode())
    assert FLAGS[native.name] <= has


def test_auto_takes_the_fastest_set_that_computes_the_model(native: NativeLibrary) -> None:
    chosen = choose_kernels(WIDE, torch.bfloat16, CPU).name
    assert SETS.index(chosen) <= SETS.index(native.name)


def test_a_named_set_is_taken(native: NativeLibrary) -> None:
    assert choose_kernels(WIDE, torch.bfloat16, CPU, native.name).name == native.name


def test_plain_is_torch() -> None:
    assert choose_kernels(WIDE, torch.bfloat16, CPU, "plain").name in ("torch", "oneDNN")


@pytest.mark.usefixtures("none_built")
def test_without_the_library_torch_computes() -> None:
    assert choose_kernels(WIDE, torch.bfloat16, CPU).name in ("torch", "oneDNN")
    with pytest.raises(ValueError, match="The kernels avx2 cannot run here: not built: install a C"):
        choose_kernels(WIDE, torch.bfloat16, CPU, "avx2")


def test_a_set_of_another_processor_is_refused() -> None:
    sets: tuple[library.SetName, ...] = ("neon", "avx2")
    missing = next(name for name in sets if library.library(name) is None)
    with pytest.raises(ValueError, match=f"The kernels {missing} cannot run here: .*Choose --kernels auto."):
        choose_kernels(WIDE, torch.bfloat16, CPU, missing)


def test_a_set_refuses_a_model_that_it_cannot_compute(native: NativeLibrary) -> None:
    """Heads of 8 fill no register."""
    with pytest.raises(ValueError, match=f"The kernels {native.name} cannot compute a model of this shape"):
        choose_kernels(CONFIG, torch.bfloat16, CPU, native.name)
    with pytest.raises(ValueError, match="bfloat16 on the CPU only"):
        choose_kernels(WIDE, torch.float32, CPU, native.name)
