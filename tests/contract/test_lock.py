"""Locks of platforms have every package, with a hash."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCKS = sorted((REPOSITORY / "locks").glob("*.txt"))


def versions(text: str) -> dict[str, str]:
    """Return the pinned versions by normalized name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s+]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_a_lock_has_every_package_of_the_constraints(lock: Path) -> None:
    """Run `make lock` after a change of them."""
    locked = versions(lock.read_text())
    assert locked.pop("setuptools"), "builds the project"
    assert locked == versions((REPOSITORY / "constraints.txt").read_text())


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_each_line_has_a_hash(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
