"""Write files that appear complete or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write or replace a file.

    Readers see the old content or the new one. The file is readable by all, as with a usual umask.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:32]}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.chmod(0o644)  # mkstemp makes it readable by its owner only
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
