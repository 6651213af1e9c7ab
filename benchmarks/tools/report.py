"""A benchmark's report: table with aims, JSON file, plot.

Each names the machine.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from benchmarks.tools.processor import this_machine

mpl.use("Agg")  # renders to files, without a window

import matplotlib.pyplot as plt  # after the choice of the backend
from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path(__file__).parents[2] / ".tandem" / "benchmarks"  # ignored by git


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number and its aim."""

    name: str
    value: float
    unit: str
    aim: str = ""  # in words, empty without an aim
    met: bool | None = None  # None without an aim


@dataclass(slots=True)
class Report:
    """Figures of one benchmark run."""

    name: str  # also the name of the files in results/
    title: str
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # raw samples and settings, for the JSON file

    def add(self, name: str, value: float, unit: str, *, aim: str = "", met: bool | None = None) -> None:
        """Add one figure at the end of the table."""
        self.figures.append(Figure(name=name, value=value, unit=unit, aim=aim, met=met))

    def publish(self, plot: Callable[[Axes], None], json_path: Path | None = None) -> None:
        """Print the table and write JSON file and plot.

        They go to `results/`, or to the file or folder `json_path`.
        """
        machine = this_machine()
        Console().print(self.table())
        Console().print(f"[dim]measured on {machine}")
        target = json_path or RESULTS
        if target.suffix != ".json":
            target = target / f"{self.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "title": self.title,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": asdict(machine),
            "python": platform.python_version(),
            "figures": [asdict(figure) for figure in self.figures],
            "details": self.details,
        }
        target.write_text(json.dumps(content, indent=1) + "\n")
        drawing, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        plot(axes)
        axes.set_title(f"{self.title}\n{machine}", fontsize="medium")
        drawing.savefig(target.with_suffix(".png"), dpi=120)
        plt.close(drawing)

    def table(self) -> Table:
        """Return the figures as a table for the terminal."""
        table = Table(title=self.title, title_justify="left")
        table.add_column("figure")
        table.add_column("measured", justify="right")
        table.add_column("unit")
        table.add_column("aim")
        table.add_column("met")
        for figure in self.figures:
            met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[figure.met]
            table.add_row(figure.name, f"{figure.value:,.4g}", figure.unit, figure.aim, met)
        return table


def parse_arguments(
    description: str, arguments: Sequence[str] | None = None, **options: dict[str, Any]
) -> argparse.Namespace:
    """Parse the flags of a benchmark.

    Every benchmark has `--quick` and `--json PATH`. `options` adds its own flags: name -> keywords of `add_argument`.
    Quick runs write to a folder of their own, so they never overwrite the published figures of full runs.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{Path(sys.argv[0]).stem}", description=description)
    parser.add_argument("--quick", action="store_true", help="measure less, in at most a minute")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="file or folder for the results: a JSON file and a plot "
        "(default: benchmarks/results, or .tandem/benchmarks with --quick)",
    )
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.json is None:
        parsed.json = QUICK_RESULTS
    return parsed


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median ratio of samples from the same round."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
