"""The progress bars of `tandem checkpoint`, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tandem.commands.terminal import ForeignTextConsole

if TYPE_CHECKING:  # this module needs an extra
    from checkpoint.importing import Progress as ImportProgress


@contextmanager
def tensor_progress(tag: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show the progress of writing tensors, and yield its callback."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = ForeignTextConsole(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(tag, total=None)

        def on_tensor(_name: str, bytes_so_far: int, bytes_in_total: int) -> None:
            progress.update(task, completed=bytes_so_far, total=bytes_in_total)

        yield on_tensor


@contextmanager
def file_progress() -> Iterator[Callable[[ImportProgress], None]]:
    """Show the progress of an import, and yield its callback.

    The bar has the files, the bytes and the time left. In a pipe each finished file is a line.
    """
    console = ForeignTextConsole(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[files]}"),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _FileProgress(progress, console).update


class _FileProgress:
    """Passes the state of an import to a progress bar."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._task: TaskID | None = None
        self._num_files_done = 0

    def update(self, state: ImportProgress) -> None:
        """Show the state of an import."""
        files = f"file {min(state.num_files_done + 1, state.num_files)} of {state.num_files}"
        if self._task is None:
            # The bytes of an interrupted import come first, so that they do not count for the speed.
            self._num_files_done = state.num_files_done
            self._task = self._progress.add_task(
                state.file, total=state.num_bytes_total, completed=state.num_bytes, files=files
            )
        self._progress.update(self._task, description=state.file, completed=state.num_bytes, files=files)
        if state.num_files_done > self._num_files_done and not self._console.is_terminal:
            self._console.print(f"hashed {state.file}", highlight=False, soft_wrap=True)
        self._num_files_done = state.num_files_done
