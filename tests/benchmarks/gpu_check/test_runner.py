"""Each check runs in a process of its own, within a budget."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.gpu_check.catalog import CHECKS, Check
from benchmarks.gpu_check.rows import Row, RowWriter, read_rows
from benchmarks.gpu_check.runner import Results, run_checks

MISBEHAVING = "tests.benchmarks.gpu_check.misbehaving"


def check(name: str, module: str = "", limit_s: float = 60, packages: tuple[str, ...] = ("torch",)) -> Check:
    module = module or f"{MISBEHAVING}.{name}"
    return Check(name=name, about="a test", module=module, packages=packages, seconds=1, limit_s=limit_s)


LOW_BIT = check("low_bit", "benchmarks.gpu_check.checks.low_bit")


def run(folder: Path, *checks: Check, budget_s: float = 300) -> Results:
    path = folder / "results.json"
    results = run_checks(checks, sizes="tiny", budget_s=budget_s, folder=folder / "rows", json_path=path)
    written = json.loads(path.read_text())
    assert [Row(**row) for row in written["rows"]] == results.rows
    return results


def rows_of(results: Results, name: str) -> dict[str, Row]:
    return {row.name: row for row in results.rows if row.check == name}


@pytest.mark.slow
def test_a_crash_a_hang_and_a_failure_lose_only_their_own_later_rows(tmp_path: Path) -> None:
    hanging = check("hanging", limit_s=30)
    results = run(tmp_path, check("crashing"), hanging, check("failing"), LOW_BIT)
    assert [each.outcome for each in results.outcomes] == ["failed", "killed", "failed", "done"]
    assert list(rows_of(results, "crashing")) == ["before the crash", "failed"]
    assert "exit code -6" in rows_of(results, "crashing")["failed"].note
    failing = rows_of(results, "failing")
    assert (failing["missed"].met, failing["failed"].met) == (False, False)
    assert "illegal memory access" in failing["failed"].note
    assert rows_of(results, "low_bit").keys() >= {"w4a16, error of logits", "peak memory of the process"}
    hung = rows_of(results, "hanging")
    assert "more than 30 s" in hung["killed"].note
    child = hung["child"].value
    assert child is not None
    assert not Path(f"/proc/{int(child)}").exists()


@pytest.mark.slow
def test_the_budget_ends_the_run_in_time(tmp_path: Path) -> None:
    start_s = time.monotonic()
    results = run(tmp_path, check("hanging"), LOW_BIT, budget_s=10)
    assert time.monotonic() - start_s < 20
    assert [each.outcome for each in results.outcomes] == ["killed", "not started"]
    assert rows_of(results, "low_bit")["not started"].note == "no time was left"


def test_a_check_without_its_packages_is_not_started(tmp_path: Path) -> None:
    results = run(tmp_path, check("low_bit", packages=("torch", "no_such_package", "no_such.part")))
    assert [each.outcome for each in results.outcomes] == ["not started"]
    assert results.rows[0].note == "missing packages: no_such_package, no_such.part"


def test_rows_survive_a_line_that_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    writer = RowWriter("check", path)
    writer.at_least("bandwidth", 3.0, "TB/s", 2.0)
    writer.at_most("error", float("nan"), "", 0.1)
    with path.open("a") as file:
        file.write('{"check": "check", "na')
    first, second = read_rows(path)
    assert (first.value, first.aim, first.met) == (3.0, "at least 2", True)
    assert (second.value, second.met) == (None, False)
    assert read_rows(tmp_path / "none.jsonl") == []


def test_the_expected_times_fit_the_budget() -> None:
    assert sum(each.seconds for each in CHECKS) < 420
    assert all(each.seconds < each.limit_s for each in CHECKS)
