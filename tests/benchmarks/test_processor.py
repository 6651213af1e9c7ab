"""The description of the machine in results."""

import platform
from pathlib import Path

import pytest

from benchmarks.tools.processor import instruction_set, processor_name, this_machine


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel Xeon Platinum 8481C"),
        ("AMD EPYC 9B14 Processor", "AMD EPYC 9B14"),
    ],
)
def test_results_are_named_by_the_processor(listed: str, name: str, tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text(f"processor\t: 0\nmodel name\t: {listed}\ncache size\t: 1024 KB\n")
    assert processor_name(listing) == name
    assert processor_name(tmp_path / "none") == platform.machine()


@pytest.mark.parametrize(
    ("family", "model", "generation"),
    [(23, 1, " Zen"), (23, 49, " Zen 2"), (25, 1, " Zen 3"), (25, 17, " Zen 4"), (25, 97, " Zen 4"), (27, 1, "")],
)
def test_a_hidden_name_is_completed_by_the_generation(family: int, model: int, generation: str, tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    names = f"cpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"
    listing.write_text("".join(f"processor\t: {core}\nvendor_id\t: AuthenticAMD\n{names}" for core in range(2)))
    assert processor_name(listing) == f"AMD EPYC{generation}"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("flags\t\t: fpu avx2 fma avx512f avx512_bf16 amx_bf16 amx_tile amx_int8", "amx"),
        ("flags\t\t: fpu avx2 fma avx512f avx512_bf16 amx_tile", "avx512bf16"),
        ("flags\t\t: fpu avx2 fma avx512f", "avx512"),
        ("flags\t\t: fpu fma avx2", "avx2"),
        ("flags\t\t: fpu sse2", "none"),
        ("Features\t: fp asimd asimddp i8mm bf16", "neonbf16"),
        ("Features\t: fp asimd bf16", "neon"),
    ],
)
def test_the_fastest_instruction_set_is_named(flags: str, name: str, tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text(f"processor\t: 0\n{flags}\n")
    assert instruction_set(listing) == name


def test_this_machine_has_cores_and_memory() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.memory_gib > 0
    assert machine.processor in str(machine)
