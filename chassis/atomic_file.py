"""Write files that appear complete or not at all."""

import glob
import os
import tempfile
from pathlib import Path

_SUFFIX = ".partial"


def write_atomically(path: Path, content: bytes, *, private: bool = False, durable: bool = False) -> None:
    """Write or replace a file.

    Readers see the old content or the new one. The partial file has a new name that nobody can guess, so a link in the
    folder is never followed. A link at `path` is replaced.

    Args:
        path: of the file.
        content: of the file.
        private: only the owner may read it. Otherwise all may, as with a usual umask.
        durable: return when the content would survive a crash of the machine.
    """
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_SUFFIX, dir=path.parent)  # with O_EXCL, mode 0600
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if not private:
            partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)


def remove_partials(path: Path) -> None:
    """Remove what killed writers of a file have left.

    Only for a file with a single writer, before its first write.
    """
    for partial in path.parent.glob(f"{glob.escape(_prefix(path))}*{_SUFFIX}"):
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prefix(path: Path) -> str:
    return f".{path.name[:32]}."
