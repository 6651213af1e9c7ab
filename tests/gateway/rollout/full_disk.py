"""A disk that is full, for one state file."""

from pathlib import Path


class FullDisk:
    """Fails every write to a state file, by /dev/full."""

    def __init__(self, path: Path) -> None:
        self._partial = path.with_name(f".{path.name}.partial")
        self._partial.symlink_to("/dev/full")

    def free(self) -> None:
        self._partial.unlink()
