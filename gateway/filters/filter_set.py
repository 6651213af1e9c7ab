"""Apply the gateway's filters to texts, images and answers.

Every decision is counted and logged by its rule, never with the content.
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
    "Filter decisions, by kind (text, image, answer), rule and action (refuse, end, mask).",
    ["kind", "rule", "action"],
)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSet:
    """The filters of one gateway."""

    text_checks: bool = True  # refuse control characters and noise
    image_filter: ImageFilter | None = None
    word_list: WordList | None = None  # words answers must not contain
    word_action: Action = "end"

    def check_text(self, messages: list[ChatMessage]) -> None:
        """Check the texts of a conversation.

        Raises:
            InvalidArgument: reason 'CONTROL_CHARACTER' or 'ONLY_NOISE'.
        """
        if not self.text_checks:
            return
        try:
            check_text(messages)
        except InvalidArgument as error:
            _record("text", error.reason, "refuse")
            raise

    def check_image(self, data: bytes, field: str) -> None:
        """Check an image by its visual tokens.

        Args:
            data: serialized `VisualTokens`.
            field: the image's place in the request.

        Raises:
            InvalidArgument: reason 'IMAGE_FILTERED'. The metadata list the detected classes.
            FailedPrecondition: reason 'NO_CLASSIFIER'.
        """
        if self.image_filter is None:
            return
        classes = self.image_filter.detect(tensor_pb2.VisualTokens.FromString(data))
        for name in classes:
            _record("image", name, "refuse")
        if classes:
            raise InvalidArgument(
                "The image shows content this gateway refuses: send another image.",
                reason="IMAGE_FILTERED",
                field=field,
                metadata={"classes": ",".join(classes)},
            )

    @contextmanager
    def word_filter(self) -> Iterator[WordFilter | None]:
        """Yield a word filter for one answer.

        Yields None without a word list. The hits are recorded at the end of the block, also after an error.
        """
        if self.word_list is None:
            yield None
            return
        word_filter = WordFilter(self.word_list, self.word_action)
        try:
            yield word_filter
        finally:
            for language in sorted(word_filter.languages):
                _record("answer", language, self.word_action)


def _record(kind: Literal["text", "image", "answer"], rule: str, action: str) -> None:
    FILTERED.labels(kind, rule, action).inc()
    _log.info("filtered", kind=kind, rule=rule, action=action)
