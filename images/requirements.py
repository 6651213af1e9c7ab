"""Print the requirements of extras in pyproject.toml.

The images install them before the code, so that a change of the code rebuilds one small layer.
"""

import argparse
import re
import tomllib
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one requirement a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="+", help="names in [project.optional-dependencies]")
    parser.add_argument("--only", help="print only the requirement of this package")
    arguments = parser.parse_args()
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in requirements(project, arguments.extras):
        if arguments.only in (None, re.split(r"[^\w.-]", requirement)[0]):
            print(requirement)


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """Return the requirements of the project and of its extras, each once."""
    found = dict.fromkeys(project["dependencies"])
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[(.*)\]", requirement)
            names = requirements(project, own[1].split(",")) if own else [requirement]
            found.update(dict.fromkeys(names))
    return list(found)


if __name__ == "__main__":
    main()
