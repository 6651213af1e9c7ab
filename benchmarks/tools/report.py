"""What every benchmark prints and leaves behind: a table with aims, a JSON file and a plot beside it."""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

mpl.use("Agg")  # no window: plots go to files

import matplotlib.pyplot as plt  # the backend must be chosen first
from matplotlib.axes import Axes

RESULTS = Path(__file__).parents[1] / "results"
QUICK_RESULTS = Path(__file__).parents[2] / ".tandem" / "benchmarks"  # ignored by git


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number, and what it was meant to be."""

    name: str
    value: float
    unit: str
    aim: str = ""  # in words, empty where there is none
    met: bool | None = None  # None where there is no aim


@dataclass(slots=True)
class Report:
    """Figures of one benchmark run, collected while it runs and published at its end."""

    name: str  # also the name of the files under results/
    title: str
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # raw samples and settings, for the JSON file

    def add(self, name: str, value: float, unit: str, *, aim: str = "", met: bool | None = None) -> None:
        """Add one figure; the table keeps the order of adding."""
        self.figures.append(Figure(name=name, value=value, unit=unit, aim=aim, met=met))

    def publish(self, plot: Callable[[Axes], None], json_path: Path | None = None) -> None:
        """Print the table, write the JSON file and the PNG beside it.

        `json_path`, a file or a folder, says where instead of `results/`.
        """
        Console().print(self.table())
        target = json_path or RESULTS
        if target.suffix != ".json":
            target = target / f"{self.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "title": self.title,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "figures": [asdict(figure) for figure in self.figures],
            "details": self.details,
        }
        target.write_text(json.dumps(content, indent=1) + "\n")
        drawing, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        plot(axes)
        axes.set_title(self.title)
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
    """Parse what every benchmark takes (`--quick`, `--json PATH`) and its own `options` (name -> add_argument's).

    A quick run keeps its results apart, so that published figures stay those of full runs.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; ends within a minute")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="file or folder for the JSON file and the plot beside it; left out, benchmarks/results, "
        "of a quick run .tandem/benchmarks",
    )
    for name, keywords in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.json is None:
        parsed.json = QUICK_RESULTS
    return parsed
