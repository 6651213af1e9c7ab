"""Wheels are chosen from the constraints, and installed beside other packages."""

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks.gpu_check import installing
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.installing import install
from benchmarks.gpu_check.wheels import needed, pinned
from chassis.extras import MODULES


def write_wheel(folder: Path, name: str, *, tag: str = "py3-none-any") -> None:
    """Write a wheel with one module."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "VALUE = 7\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "WHEEL_PYTHON", sys.version_info[:2])


@pytest.mark.slow
@pytest.mark.usefixtures("this_python")
def test_wheels_are_installed_in_a_folder_of_their_own_once(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    write_wheel(wheels, "first_of_ours")
    assert "1 wheels are installed" in install(wheels=(wheels,), site=site)
    found = subprocess.run(
        [sys.executable, "-c", "import first_of_ours as each; print(each.VALUE, each.__file__)"],
        env={"PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert found.split() == ["7", str(site / "first_of_ours.py")]
    (site / "first_of_ours.py").unlink()
    install(wheels=(wheels,), site=site)  # the same wheels are not installed again
    assert not (site / "first_of_ours.py").exists()
    write_wheel(wheels, "second_of_ours")
    install(wheels=(wheels,), site=site)
    assert (site / "first_of_ours.py").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("this_python")
def test_a_wheel_that_does_not_fit_is_named_and_the_others_are_installed(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    write_wheel(wheels, "ours")
    write_wheel(wheels, "theirs", tag="cp27-cp27m-win32")
    assert "1 wheels are installed" in (said := install(wheels=(wheels,), site=site))
    assert "pip refused theirs-1.0-cp27-cp27m-win32.whl" in said
    assert (site / "ours.py").exists()


def test_another_python_and_an_empty_folder_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install(wheels=(tmp_path,), site=tmp_path / "site").startswith("No wheels")
    write_wheel(tmp_path, "ours")
    monkeypatch.setattr(installing, "WHEEL_PYTHON", (3, 1))
    assert "for Python 3.1" in install(wheels=(tmp_path,), site=tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_wheels_are_of_all_that_the_services_import_but_what_the_machine_has() -> None:
    wheels = set(needed())
    assert all("==" in line for line in pinned(wheels))
    assert not {"torch", "triton", "numpy", "sympy"} & wheels
    providers = packages_distributions()
    for module in {*MODULES["stages"], *MODULES["gateway"], "typer", "pytest_asyncio"} - {"torch", "numpy"}:
        assert {name.lower().replace("_", "-") for name in providers[module]} & wheels, module
    with pytest.raises(SystemExit, match="no version of no-such-package"):
        pinned(("no-such-package",))


def test_without_a_gpu_the_full_check_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["--no-install", "--json", str(tmp_path / "results.json")]) == 2
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_the_command_writes_results_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert main(["--no-install", "--sizes", "tiny", "--only", "low_bit", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "low_bit: done" in shown
    assert "w4a16, error of logits" in shown
    written = json.loads(path.read_text())
    assert {row["check"] for row in written["rows"]} == {"low_bit"}
    assert "torch" in written["setup"]["card"]
    commit = written["setup"]["commit"]
    assert commit is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", commit)
