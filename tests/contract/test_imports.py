"""Imports point down only, so that a stage can be changed, replaced or deployed without the others."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# What each package may import of this repository.
MAY_IMPORT = {
    "chassis": {"chassis", "tandem.v1"},
    "checkpoint": {"checkpoint", "chassis", "tandem.v1"},
    "vision_service": {"vision_service", "checkpoint", "chassis", "tandem.v1"},
    "language_service": {"language_service", "checkpoint", "chassis", "tandem.v1"},
    "gateway": {"gateway", "checkpoint", "chassis", "tandem.v1"},
    "tandem": {"tandem", "checkpoint", "chassis", "tandem.v1"},
}
OURS = {*MAY_IMPORT, "demo", "benchmarks", "tests"}

# Parts of a package that must stay free of heavy libraries, so that they can be read and tested on their own.
MUST_NOT_IMPORT = {
    "gateway": {"torch"},
    "chassis": {"torch"},
    "vision_service/model": {"grpc", "tandem"},
    "language_service/model": {"grpc", "tandem"},
    "language_service/scheduling": {"torch", "grpc", "tandem"},
    "language_service/cache/blocks.py": {"torch", "grpc", "tandem"},
    "language_service/cache/prefix.py": {"torch", "grpc", "tandem"},
}


def imports(path: Path) -> set[str]:
    """Return the modules a file imports, dotted."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources(part: str) -> list[Path]:
    """Return the Python files of a folder, or the file itself; generated stubs excluded."""
    place = REPOSITORY / part
    files = [place] if place.suffix == ".py" else sorted(place.rglob("*.py"))
    return [file for file in files if "_pb2" not in file.name]


def is_below(name: str, package: str) -> bool:
    """Return whether a dotted name is the package or inside it."""
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_point_down(package: str) -> None:
    files = sources(package)
    assert files
    wrong = [
        f"{file.relative_to(REPOSITORY)}: {name}"
        for file in files
        for name in imports(file)
        if name.partition(".")[0] in OURS and not any(is_below(name, allowed) for allowed in MAY_IMPORT[package])
    ]
    assert not wrong


@pytest.mark.parametrize("part", sorted(MUST_NOT_IMPORT))
def test_parts_stay_free_of_heavy_libraries(part: str) -> None:
    files = sources(part)
    assert files
    wrong = [
        f"{file.relative_to(REPOSITORY)}: {name}"
        for file in files
        for name in imports(file)
        if any(is_below(name, library) for library in MUST_NOT_IMPORT[part])
    ]
    assert not wrong
