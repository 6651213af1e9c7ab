"""The model store: a folder of checkpoints, named by tag."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chassis.errors import FailedPrecondition, InvalidArgument, NotFound
from checkpoint.tags import Tag, parse_tag

_TAGS_SHOWN = 5  # in an error


class ModelStore:
    """The checkpoints in one folder, by tag."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def tags(self) -> list[str]:
        """Return the store's tags, sorted by name and version."""
        return [str(tag) for tag in sorted(self._tags())]

    def folder(self, tag: str) -> Path:
        """Return the folder of a checkpoint.

        Raises:
            InvalidArgument: BAD_TAG, the text is not a tag.
            NotFound: UNKNOWN_TAG, the store has no such checkpoint.
        """
        folder = self.root / str(parse_tag(tag))
        if not folder.is_dir():
            known = self.tags()[-_TAGS_SHOWN:]
            others = f"; it has {', '.join(known)}" if known else "; it is empty, so check its path or mount"
            raise NotFound(f"The model store has no {tag}{others}.", reason="UNKNOWN_TAG", field="tag", where=self.root)
        return folder

    def new_folder(self, tag: str) -> Path:
        """Return the path of a new checkpoint.

        Raises:
            InvalidArgument: BAD_TAG, the text is not a tag.
            FailedPrecondition: TAG_EXISTS, releases are never overwritten.
        """
        folder = self.root / str(parse_tag(tag))
        if folder.exists():
            raise FailedPrecondition(
                f"The model store has a {tag} already: releases are never overwritten, so choose another tag.",
                reason="TAG_EXISTS",
                field="tag",
                where=self.root,
            )
        return folder

    @contextmanager
    def create(self, tag: str) -> Iterator[Path]:
        """Yield an empty folder that becomes a checkpoint.

        A checkpoint appears complete or not at all. The folder has a temporary name. It gets its tag as its name if the
        block ends without an error.

        Raises:
            InvalidArgument: BAD_TAG, the text is not a tag.
            FailedPrecondition: TAG_EXISTS, releases are never overwritten.
        """
        self.new_folder(tag)
        self.root.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{tag}.", suffix=".partial", dir=self.root))
        try:
            yield partial
            partial.chmod(0o755)  # mkdtemp makes it readable by its owner only
            partial.rename(self.new_folder(tag))
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _tags(self) -> Iterator[Tag]:
        for entry in self.root.iterdir() if self.root.is_dir() else ():
            try:
                tag = parse_tag(entry.name)
            except InvalidArgument:
                continue  # a README, or a checkpoint that is being written
            if entry.is_dir():
                yield tag
