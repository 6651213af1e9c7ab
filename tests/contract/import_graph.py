"""Read the imports of this repository from its source, without running it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = (
    *("tandem", "gateway", "http_gateway", "vision_service", "language_service"),
    *("processing", "hosting", "checkpoint", "chassis"),
)
FOLDERS = (*PACKAGES, "demo", "benchmarks", "tests")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, as the source has it."""

    module: str  # 'gateway.stages'
    name: str | None  # 'Stage' of 'from gateway.stages import Stage'; None for 'import gateway.stages'
    at_import: bool  # runs when the importing module is imported: outside functions and TYPE_CHECKING blocks


@cache
def sources() -> tuple[Path, ...]:
    """Return every Python file except generated stubs."""
    found = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    return tuple(sorted(path for path in found if "_pb2" not in path.name))


@cache
def modules() -> dict[str, Path]:
    """Return every module except stubs, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            if "_pb2" not in path.name:
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Return the imports of one file."""
    return tuple(_walk(ast.parse(path.read_text(encoding="utf-8")).body, at_import=True))


def _walk(body: list[ast.stmt], *, at_import: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room a name comes from"
            assert node.module is not None
            yield from (Import(node.module, alias.name, at_import) for alias in node.names)
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_for_types(node)
        for field in ("body", "orelse", "finalbody", "handlers"):
            children = getattr(node, field, [])
            yield from _walk([child for child in children if isinstance(child, ast.stmt)], at_import=inside)
            for handler in children:
                if isinstance(handler, ast.ExceptHandler):
                    yield from _walk(handler.body, at_import=inside)


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def module_of(one: Import) -> str:
    """Return the module that an import names.

    'from gateway.answer import checks' names a module, not its room.
    """
    full = f"{one.module}.{one.name}"
    return full if one.name is not None and full in modules() else one.module


def loaded_by(module: str) -> set[str]:
    """Return every module that importing `module` loads.

    The `__init__` files of its parents load more.
    """
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        todo += [".".join(parts[:count]) for count in range(1, len(parts))]  # parents' __init__ files run first
        if name in modules():
            todo += [module_of(one) for one in imports(modules()[name]) if one.at_import]
    return seen
