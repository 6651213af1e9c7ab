"""A disk that is gone for a while, under one state file."""

from pathlib import Path


class LostDisk:
    """Fails every write to the folder of a state file."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._aside = self._folder.with_name(f"{self._folder.name}-aside")
        self._folder.rename(self._aside)

    def restore(self) -> None:
        self._aside.rename(self._folder)
