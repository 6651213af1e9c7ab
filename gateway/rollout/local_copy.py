"""A copy of the rollout, for a start without the store."""

import structlog

from chassis.errors import TandemError
from gateway.rollout.store import FileStore
from gateway.rollout.stored_format import Document

_log = structlog.get_logger()


class LocalCopy:
    """The last document of this gateway, in a file."""

    def __init__(self, file: FileStore | None) -> None:
        self._file = file
        self._problem = ""  # logged last

    async def read(self) -> Document:
        """Return the document."""
        return await self._file.read() if self._file is not None else Document()

    async def write(self, document: Document) -> None:
        """Write a document, best effort."""
        if self._file is None:
            return
        try:
            kept = await self._file.read()
            if kept != document:
                await self._file.compare_and_set(kept.version, document)
            self._problem = ""
        except TandemError as error:
            if error.message != self._problem:
                _log.error("local copy of the rollout not written", error=error.local_message)
            self._problem = error.message
