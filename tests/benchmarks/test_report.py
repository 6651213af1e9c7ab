"""Reports, their files, and the benchmarks of `make bench`."""

import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from benchmarks.tools.processor import this_machine
from benchmarks.tools.report import RESULTS, Report, parse_arguments

REPOSITORY = Path(__file__).parents[2]
TOO_LARGE_FOR_ALL = {"full_size"}  # 13 GB on disk and in memory: `make bench-full_size`


def plot(axes: Axes) -> None:
    axes.plot([1, 2])


def test_a_quick_run_never_overwrites_published_results_by_default() -> None:
    quick = parse_arguments("A benchmark.", ["--quick"]).json
    assert quick is not None
    assert not quick.is_relative_to(RESULTS)
    ignored = subprocess.run(["git", "check-ignore", "--quiet", quick / "a.json"], cwd=REPOSITORY)
    assert ignored.returncode == 0
    assert parse_arguments("A benchmark.", []).json is None
    assert parse_arguments("A benchmark.", ["--quick", "--json", "here.json"]).json == Path("here.json")


@pytest.mark.parametrize(("given", "written"), [("folder", "folder/speed.json"), ("other.json", "other.json")])
def test_results_go_to_the_given_file_or_folder(given: str, written: str, tmp_path: Path) -> None:
    report = Report("speed", "How fast it is")
    report.add("speed", 3.0, "m/s", aim="at least 2", met=True)
    report.publish(plot, tmp_path / given)
    content = json.loads((tmp_path / written).read_text())
    [figure] = content["figures"]
    assert figure == {"name": "speed", "value": 3.0, "unit": "m/s", "aim": "at least 2", "met": True}
    assert (tmp_path / written).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert content["machine"] == asdict(this_machine())


def benchmarks() -> set[str]:
    return {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")} - {"__init__"}


def test_make_bench_runs_every_benchmark_with_quick() -> None:
    """A benchmark that no target runs would break unnoticed."""
    steps = subprocess.run(["make", "-n", "bench"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert benchmarks()
    assert benchmarks() - TOO_LARGE_FOR_ALL == set(re.findall(r"benchmarks\.(\w+) --quick", steps))


def test_every_module_directly_in_benchmarks_is_a_script_with_quick_and_json() -> None:
    for name in benchmarks():
        assert " = parse_arguments(" in (REPOSITORY / "benchmarks" / f"{name}.py").read_text(), name


@pytest.mark.parametrize("suffix", [".json", ".png"])
def test_every_benchmark_has_committed_results(suffix: str) -> None:
    """No results remain of a removed benchmark.

    A benchmark of a processor adds its name to that of the script.
    """
    assert {path.stem.partition("-")[0] for path in RESULTS.glob(f"*{suffix}")} == benchmarks()


def test_every_result_names_its_machine() -> None:
    for path in RESULTS.glob("*.json"):
        machine = json.loads(path.read_text())["machine"]
        assert all(machine[fact] for fact in ("processor", "cores", "instruction_set")), path.name
