"""When things happened to one request, and the message that tells its client so."""

import time
from dataclasses import dataclass, field

from prometheus_client import Histogram

from tandem.v1 import gateway_pb2, language_pb2

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TIME_TO_FIRST_TOKEN = Histogram(
    "tandem_gateway_time_to_first_token_seconds",
    "From the request to the first token of its answer, seconds.",
    ["release"],
    buckets=_SECONDS,
)
INTER_TOKEN = Histogram(
    "tandem_gateway_inter_token_seconds",
    "Between two messages of tokens of one answer, seconds.",
    ["release"],
    buckets=_TOKEN_SECONDS,
)


@dataclass(slots=True)
class Report:
    """Clock readings of one request, seconds; 0 is what has not happened."""

    started: float = field(default_factory=time.perf_counter)
    chosen: float = field(default_factory=time.perf_counter)  # when its release was, after the wait at the door
    is_mirrored: bool = False  # nobody waits for it, and it is last in line: its times are not its release's
    prepared: float = 0
    first_token: float = 0
    last_token: float = 0
    num_answer_tokens: int = 0  # that came so far
    num_later_tokens: int = 0  # those of them that came after the first message
    has_text: bool = False  # whether the client was sent more than white space
    # One entry an image, in the order of the conversation; filled as they come.
    images: list[gateway_pb2.ImageReport] = field(default_factory=list)

    def ms_since_start(self, reading: float | None = None) -> float:
        """Return the milliseconds from the request to `reading`, or to now; 0 for what has not happened."""
        if reading is None:
            reading = time.perf_counter()
        return max(0.0, reading - self.started) * 1000

    def mark_prepared(self) -> None:
        """Note that checks, chat template and tokenizer are done."""
        self.prepared = time.perf_counter()

    def mark_tokens(self, release: str, num_tokens: int) -> None:
        """Note that tokens came."""
        now = time.perf_counter()
        self.num_answer_tokens += num_tokens
        if not self.is_mirrored:
            metric = INTER_TOKEN if self.first_token else TIME_TO_FIRST_TOKEN
            metric.labels(release).observe(now - (self.last_token or self.started))
        self.num_later_tokens += num_tokens if self.first_token else 0
        self.first_token = self.first_token or now
        self.last_token = now

    def mark_text(self, text: str) -> None:
        """Note that text became visible."""
        self.has_text = self.has_text or bool(text.strip())

    @property
    def inter_token_s(self) -> float | None:
        """Mean time of a token after the first message, which may bring several; None where there was no other."""
        if not self.num_later_tokens:
            return None
        return (self.last_token - self.first_token) / self.num_later_tokens

    def timings(self, language: language_pb2.GenerateTimings) -> gateway_pb2.StageTimings:
        """Return where the time went; `language` is what the language service says of its part."""
        return gateway_pb2.StageTimings(
            prepare_ms=self.ms_since_start(self.prepared),
            vision_ms=max((image.ready_ms for image in self.images), default=0),
            queue_ms=language.queue_ms,
            prefill_ms=language.prefill_ms,
            first_token_ms=self.ms_since_start(self.first_token),
            decode_ms=(self.last_token - self.first_token) * 1000,
            total_ms=self.ms_since_start(),
        )
