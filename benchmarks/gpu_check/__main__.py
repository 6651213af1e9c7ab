"""Check on a GPU whatever needs one, within a time budget.

    make gpu-wheels         # once, where there is a network
    make gpu-check          # on the machine with the GPU
    make gpu-check DRY=1    # anywhere: list the checks, import them, and name missing packages

Needs Python and torch. All else comes from the folder that `make gpu-wheels` fills.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.catalog import CHECKS, Check, import_problem, missing_packages
from benchmarks.gpu_check.installing import FOLDER, REPOSITORY, RTX_WHEELS, SITE, WHEEL_PYTHON, install
from benchmarks.gpu_check.runner import Outcome, Results, run_checks

_BUDGET_S = 470.0  # of the eight minutes, the rest is for the table


def main(arguments: Sequence[str] | None = None) -> int:
    """Install, run, print.

    Returns 1 if an aim was missed, 2 if there is no GPU.
    """
    options = _parse(arguments)
    started_s = time.monotonic()
    setup: dict[str, object] = {"wheels": "not installed"}
    if not options.no_install:
        setup["wheels"] = install()
    setup["tensorrt_rtx"] = "in the wheel folder" if list(RTX_WHEELS.glob("*.whl")) else "absent"
    setup["install_s"] = round(time.monotonic() - started_s, 1)
    _use_site()
    checks = [check for check in CHECKS if not options.only or check.name in options.only]
    if options.dry:
        return _dry(checks, setup)
    if options.sizes == "full" and not _has_gpu():
        print(f"GPU: {_gpu()}")
        return 2
    setup |= {"card": _gpu(), "commit": _commit()}
    results = run_checks(
        checks,
        sizes=options.sizes,
        budget_s=options.budget_s - (time.monotonic() - started_s),
        folder=FOLDER / "rows",
        json_path=options.json,
        setup=setup,
        on_end=_say,
    )
    _print_results(results)
    print(f"Written to {options.json}, in {time.monotonic() - started_s:.0f} s.")
    return int(any(row.met is False for row in results.rows))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description="Check a GPU.")
    parser.add_argument("--dry", action="store_true", help="list and import the checks, but run none")
    parser.add_argument("--only", action="append", choices=[check.name for check in CHECKS], help="run this check only")
    parser.add_argument("--sizes", default="full", choices=("full", "tiny"), help="tiny runs on a CPU (default: full)")
    parser.add_argument("--budget-s", type=float, default=_BUDGET_S, help="time of the whole run, seconds")
    parser.add_argument("--no-install", action="store_true", help="do not install the wheel folder")
    parser.add_argument("--json", type=Path, default=FOLDER / "results.json", help="file of the results")
    return parser.parse_args(arguments)


def _use_site() -> None:
    """Let this process and its children import the installed wheels."""
    paths = (
        [str(SITE), str(REPOSITORY)] if SITE.is_dir() and sys.version_info[:2] == WHEEL_PYTHON else [str(REPOSITORY)]
    )
    sys.path[:0] = [path for path in paths if path not in sys.path]
    importlib.invalidate_caches()  # the folder may be new
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])


def _dry(checks: Sequence[Check], setup: dict[str, object]) -> int:
    """Print which checks would run.

    Returns 1 if one cannot be imported.
    """
    rows = []
    failed = False
    for check in checks:
        missing = missing_packages(check)
        problem = "" if missing else import_problem(check)
        failed |= bool(problem)
        state = f"missing: {', '.join(missing)}" if missing else problem or "ready"
        rows.append((check.name, check.about, f"{check.seconds:.0f}", f"{check.limit_s:.0f}", state))
    _print_table("Checks that would run", ("check", "about", "seconds", "limit", "state"), rows)
    print(f"About {sum(check.seconds for check in checks):.0f} s in all, at most {_BUDGET_S:.0f}.")
    print(f"Wheels: {setup['wheels']} TensorRT for RTX: {setup['tensorrt_rtx']}.")
    print(f"GPU: {_gpu()}")
    return int(failed)


def _has_gpu() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _gpu() -> str:
    try:
        import torch
    except ImportError:
        return "unknown, because torch is missing"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees none, so nothing but --sizes tiny would run here"
    return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}"


def _commit() -> str | None:
    """Return the commit of the code, or None without git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # git or its folder is not there
        return None


def _say(outcome: Outcome) -> None:
    print(
        f"{outcome.name}: {outcome.outcome} after {outcome.seconds:.0f} s (expected {outcome.expected_s:.0f})",
        flush=True,
    )


def _print_results(results: Results) -> None:
    rows = []
    for row in results.rows:
        value = "" if row.value is None else f"{row.value:,.4g}"
        met = {None: "", True: "yes", False: "no"}[row.met]
        note = row.note.split("\n")[-1][:90]
        rows.append((row.check, row.name, value, row.unit, row.aim, met, note))
    _print_table("GPU check", ("check", "figure", "value", "unit", "aim", "met", "note"), rows)


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with rich, or plainly without it."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\n".join([title, *("  ".join(row) for row in (header, *rows))]))
        return
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 180
    Console(width=width, markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
