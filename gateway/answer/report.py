"""Record the timings and counts of one request."""

import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Histogram

from gateway.answer.metrics import SECONDS
from gateway.answer.signs import Signs
from tandem.v1 import gateway_pb2, language_pb2

_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
TIME_TO_FIRST_TOKEN = Histogram(
    "tandem_gateway_time_to_first_token_seconds",
    "Time from the request to the first token of its answer, seconds.",
    ["release"],
    buckets=SECONDS,
)
INTER_TOKEN = Histogram(
    "tandem_gateway_inter_token_seconds",
    "Time between two token messages of one answer, seconds.",
    ["release"],
    buckets=_TOKEN_SECONDS,
)


@dataclass(slots=True)
class Report:
    """Timings and counts of one request.

    Fields that end in `_at_s` are readings of `time.perf_counter`, 0 until the event.
    """

    started_at_s: float = field(default_factory=time.perf_counter)
    routed_at_s: float = field(default_factory=time.perf_counter)  # release chosen, after the wait in the queue
    is_mirrored: bool = False  # at lowest priority, so its times say nothing about the release
    is_background: bool = False  # must not slow down other requests
    is_constrained: bool = False  # whether the answer must have a form
    measures_logprob: bool = False  # whether log-probabilities are asked for, even if the client wants none
    prepared_at_s: float = 0
    first_token_at_s: float = 0
    last_token_at_s: float = 0
    num_answer_tokens: int = 0
    num_later_tokens: int = 0  # answer tokens after the first message
    has_text: bool = False  # whether the client got more than white space
    signs: Signs = field(default_factory=Signs)  # of the complete answer
    images: list[gateway_pb2.ImageReport] = field(default_factory=list)  # in the order of the conversation
    is_sending: bool = False  # whether a message waits for the client to read, also after an error in that
    sent_at_s: float = 0  # end of the last wait for the client
    _blocked_s: float = 0  # all waits for the client
    _blocked_before_s: float = 0  # those before the last token message

    def timed(
        self, send: Callable[[gateway_pb2.GatewayGenerateResponse], Awaitable[None]]
    ) -> Callable[[gateway_pb2.GatewayGenerateResponse], Coroutine[Any, Any, None]]:
        """Return `send`, with its waits for the client recorded."""

        async def send_and_time(response: gateway_pb2.GatewayGenerateResponse) -> None:
            started_s = time.perf_counter()
            self.is_sending = True
            await send(response)
            self.is_sending = False
            self.sent_at_s = time.perf_counter()
            self._blocked_s += self.sent_at_s - started_s

        return send_and_time

    def ms_since_start(self, at_s: float | None = None) -> float:
        """Return the milliseconds from the request to a reading.

        Args:
            at_s: the reading. None means now. For 0, an event that has not happened, the result is 0.
        """
        if at_s is None:
            at_s = time.perf_counter()
        return max(0.0, at_s - self.started_at_s) * 1000

    def mark_prepared(self) -> None:
        """Record the end of checks, chat template and tokenizer."""
        self.prepared_at_s = time.perf_counter()

    def mark_tokens(self, release: str, num_tokens: int) -> None:
        """Record the arrival of answer tokens."""
        now_s = time.perf_counter()
        self.num_answer_tokens += num_tokens
        if not self.is_mirrored:
            metric = INTER_TOKEN if self.first_token_at_s else TIME_TO_FIRST_TOKEN
            metric.labels(release).observe(now_s - (self.last_token_at_s or self.started_at_s))
        self.num_later_tokens += num_tokens if self.first_token_at_s else 0
        self.first_token_at_s = self.first_token_at_s or now_s
        self.last_token_at_s = now_s
        self._blocked_before_s = self._blocked_s

    def mark_text(self, text: str) -> None:
        """Record the text sent to the client."""
        self.has_text = self.has_text or bool(text.strip())

    @property
    def inter_token_s(self) -> float | None:
        """Mean seconds per token after the first message, or None.

        The first message is left out because it may bring several tokens. Waits for the client are left out, too.
        Tokens that pile up meanwhile come at once, so an answer that waited for most of its time has no pace.
        """
        elapsed_s = self.last_token_at_s - self.first_token_at_s
        own_s = elapsed_s - self._blocked_before_s
        if not self.num_later_tokens or own_s < elapsed_s / 2:
            return None
        return own_s / self.num_later_tokens

    def timings(self, language: language_pb2.GenerateTimings) -> gateway_pb2.StageTimings:
        """Return the timings of all stages.

        Args:
            language: timings from the language service.
        """
        return gateway_pb2.StageTimings(
            prepare_ms=self.ms_since_start(self.prepared_at_s),
            vision_ms=max((image.ready_ms for image in self.images), default=0),
            queue_ms=language.queue_ms,
            prefill_ms=language.prefill_ms,
            first_token_ms=self.ms_since_start(self.first_token_at_s),
            decode_ms=(self.last_token_at_s - self.first_token_at_s) * 1000,
            total_ms=self.ms_since_start(),
        )
