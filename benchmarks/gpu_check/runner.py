"""Run checks in processes of their own, within a time budget.

A check that crashes, hangs or fails loses only its own later rows. Needs the standard library only.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_check.catalog import Check, missing_packages
from benchmarks.gpu_check.rows import Row, read_rows

_LEAST_S = 8.0  # a check with less time is not started
_SHOWN_LINES = 12  # of a failed check's output


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one check."""

    name: str
    outcome: str  # 'done', 'failed', 'killed' or 'not started'
    seconds: float
    expected_s: float
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Results:
    """Rows and outcomes of a run, in order."""

    sizes: str
    started_at: str
    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    setup: dict[str, object] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write everything as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def run_checks(
    checks: Sequence[Check],
    *,
    sizes: str,
    budget_s: float,
    folder: Path,
    json_path: Path,
    setup: dict[str, object] | None = None,
    on_end: Callable[[Outcome], None] = lambda _outcome: None,
) -> Results:
    """Run `checks` and write their results after each.

    Args:
        checks: in order.
        sizes: name in `benchmarks.gpu_check.sizes.SIZES`.
        budget_s: time for all of them.
        folder: for rows and logs, one file each a check.
        json_path: file of the results.
        setup: facts about the installation, for the results.
        on_end: called after each check.
    """
    end_s = time.monotonic() + budget_s
    results = Results(sizes=sizes, started_at=datetime.now(UTC).isoformat(timespec="seconds"), setup=setup or {})
    folder.mkdir(parents=True, exist_ok=True)
    for check in checks:
        rows_path = folder / f"{check.name}.jsonl"
        rows_path.unlink(missing_ok=True)
        outcome = _run(check, sizes, end_s - time.monotonic(), rows_path)
        results.outcomes.append(outcome)
        results.rows += read_rows(rows_path)
        if outcome.outcome != "done":
            results.rows.append(Row(check=check.name, name=outcome.outcome, aim="done", met=False, note=outcome.note))
        results.write(json_path)
        on_end(outcome)
    return results


def _run(check: Check, sizes: str, left_s: float, rows_path: Path) -> Outcome:
    def end(outcome: str, seconds: float = 0.0, note: str = "") -> Outcome:
        return Outcome(name=check.name, outcome=outcome, seconds=seconds, expected_s=check.seconds, note=note)

    if missing := missing_packages(check):
        return end("not started", note=f"missing packages: {', '.join(missing)}")
    if left_s < _LEAST_S:
        return end("not started", note="no time was left")
    limit_s = min(check.limit_s, left_s)
    log_path = rows_path.with_suffix(".log")
    start_s = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_check.child", check.module, check.name, sizes, str(rows_path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its children end with it
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return end("killed", time.monotonic() - start_s, f"it took more than {limit_s:.0f} s. {_tail(log_path)}")
        finally:
            _kill_group(process)
    seconds = time.monotonic() - start_s
    return end("done", seconds) if code == 0 else end("failed", seconds, f"exit code {code}. {_tail(log_path)}")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(path: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:])
