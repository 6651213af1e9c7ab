"""Run the tests marked `gpu`."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes

REPOSITORY = Path(__file__).parents[3]
_MARK = "pytest.mark.gpu"


def marked_files(folder: Path) -> list[Path]:
    """Return the test files with tests for a GPU.

    The others may import packages that are not there.
    """
    return sorted(path for path in folder.rglob("test_*.py") if _MARK in path.read_text(encoding="utf-8"))


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Run them and report the counts and each failure."""
    files = marked_files(REPOSITORY / "tests")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-m", "gpu"]
        done = subprocess.run([*command, f"--junitxml={report}", *map(str, files)], cwd=REPOSITORY, check=False)
        if not report.exists():
            raise RuntimeError(f"pytest ended with exit code {done.returncode} and without a report")
        _report(ElementTree.parse(report).getroot(), rows)


def _report(root: ElementTree.Element, rows: RowWriter) -> None:
    cases = list(root.iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    rows.at_least("passed", len(cases) - len(failed) - len(skipped), "tests", 1)
    rows.add("skipped", len(skipped), "tests", note="; ".join(sorted({_message(case, "skipped") for case in skipped})))
    rows.at_most("failed", len(failed), "tests", 0)
    for case in failed:
        problem = _message(case, "failure") or _message(case, "error")
        rows.add(case.get("name", ""), aim="passed", met=False, note=problem[:500])


def _message(case: ElementTree.Element, kind: str) -> str:
    element = case.find(kind)
    return "" if element is None else element.get("message", "").split("\n")[0]
