"""The rows of a check, written as they come."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured or checked figure."""

    check: str
    name: str
    value: float | None = None  # None: not measured, see the note
    unit: str = ""
    aim: str = ""  # in words, empty without an aim
    met: bool | None = None  # None without an aim
    note: str = ""


class RowWriter:
    """Appends the rows of one check to a file.

    Each row is on disk before the next is measured, so a crash loses only later ones.
    """

    def __init__(self, check: str, path: Path) -> None:
        self._check, self._path = check, path

    def add(
        self,
        name: str,
        value: float | None = None,
        unit: str = "",
        *,
        aim: str = "",
        met: bool | None = None,
        note: str = "",
    ) -> None:
        """Write one row.

        A value that is not finite never meets an aim.
        """
        if value is not None and not math.isfinite(value):
            value, met, note = None, False, f"not finite. {note}".strip()
        row = Row(check=self._check, name=name, value=value, unit=unit, aim=aim, met=met, note=note)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def at_least(self, name: str, value: float, unit: str, least: float, *, note: str = "") -> None:
        """Write a row that aims at `least` or more."""
        self.add(name, value, unit, aim=f"at least {least:g}", met=value >= least, note=note)

    def at_most(self, name: str, value: float, unit: str, most: float, *, note: str = "") -> None:
        """Write a row that aims at `most` or less."""
        self.add(name, value, unit, aim=f"at most {most:g}", met=value <= most, note=note)

    def absent(self, name: str, note: str) -> None:
        """Write that something could not be measured."""
        self.add(name, note=note)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file.

    The last line may be cut short, because its writer was killed.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            break
    return rows
