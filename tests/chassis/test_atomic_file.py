"""Files that are whole, and written nowhere else."""

import stat
from pathlib import Path

import pytest

from chassis.atomic_file import remove_partials, write_atomically


@pytest.mark.parametrize("private", [True, False])
def test_a_private_file_is_readable_by_its_owner_alone(private: bool, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"one", private=private, durable=True)
    write_atomically(path, b"two", private=private, durable=True)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == (0o600 if private else 0o644)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [".state.json.partial", ".state.json..partial", "state.json"])
def test_a_planted_link_leads_nowhere(name: str, tmp_path: Path) -> None:
    """Otherwise another file could be overwritten."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / name).symlink_to(victim)
    path = tmp_path / "state.json"
    write_atomically(path, b"state", private=True)
    assert (path.read_bytes(), path.is_symlink()) == (b"state", False)
    assert victim.read_bytes() == b"precious"


def test_partial_files_of_killed_writers_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in (".a[1].json.x1y2.partial", ".b.json.x1y2.partial", "a[1].json", ".a[1].json.old"):
        (tmp_path / name).touch()
    remove_partials(tmp_path / "a[1].json")
    assert {path.name for path in tmp_path.iterdir()} == {".b.json.x1y2.partial", "a[1].json", ".a[1].json.old"}
