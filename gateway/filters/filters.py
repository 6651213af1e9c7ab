"""The filters of a gateway: text and images on their way in, answers on their way out.

Every decision is counted and logged by rule, never with what it was about.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import structlog
from prometheus_client import Counter

from chassis.errors import InvalidArgument
from gateway.filters.image_filter import ImageFilter
from gateway.filters.text_checks import check_text
from gateway.filters.word_filter import Action, WordFilter, WordList
from processing import ChatMessage
from tandem.v1 import tensor_pb2

FILTERED = Counter(
    "tandem_gateway_filtered",
    "Decisions of the filters, by kind (text, image, answer), rule and action (refuse, end, mask).",
    ["kind", "rule", "action"],
)


_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is let in and out."""

    texts: bool = True  # whether texts are checked for control characters and noise
    images: ImageFilter | None = None
    words: WordList | None = None
    action: Action = "end"

    def check_text(self, messages: list[ChatMessage]) -> None:
        """Check what people wrote.

        Raises:
            InvalidArgument: reason 'CONTROL_CHARACTER' or 'ONLY_NOISE'.
        """
        if not self.texts:
            return
        try:
            check_text(messages)
        except InvalidArgument as error:
            _note("text", error.reason, "refuse")
            raise

    def check_image(self, data: bytes, field: str) -> None:
        """Check what an image shows, by its serialized `VisualTokens`.

        Raises:
            InvalidArgument: reason 'IMAGE_FILTERED'; `field` is where the request has it, the metadata say which class.
            FailedPrecondition: reason 'NO_PROBE'.
        """
        if self.images is None:
            return
        found = self.images.found(tensor_pb2.VisualTokens.FromString(data))
        for name in found:
            _note("image", name, "refuse")
        if found:
            raise InvalidArgument(
                "The image shows what is not answered here.",
                reason="IMAGE_FILTERED",
                field=field,
                metadata={"classes": ",".join(found)},
            )

    @contextmanager
    def watching(self) -> Iterator[WordFilter | None]:
        """Yield what watches one answer, None where nothing is looked for; its finds count however the block ends."""
        if self.words is None:
            yield None
            return
        watcher = WordFilter(self.words, self.action)
        try:
            yield watcher
        finally:
            for language in sorted(watcher.languages):
                _note("answer", language, self.action)


def _note(kind: Literal["text", "image", "answer"], rule: str, action: str) -> None:
    FILTERED.labels(kind, rule, action).inc()
    _log.info("filtered", kind=kind, rule=rule, action=action)
