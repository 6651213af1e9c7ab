"""Keep the costs of recent requests, and sum them up."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.answer import Report
from tandem.v1 import gateway_pb2, operations_pb2, sampling_pb2

Ending = Literal["answered", "failed", "cancelled"]

_WINDOW_S = 300.0
_MAX_REQUESTS = 4096  # bounds memory and the time to sum up


@dataclass(frozen=True, slots=True, kw_only=True)
class _EndedRequest:
    """Costs of one request."""

    at_s: float
    release: str
    ending: Ending
    first_token_s: float | None
    inter_token_s: float | None
    usage: sampling_pb2.Usage | None  # of a complete answer
    levels: tuple[gateway_pb2.CacheLevel.ValueType, ...]


class RequestWindow:
    """The requests that ended within the last minutes.

    Of many requests it keeps the latest. For one event loop.
    """

    def __init__(self, seconds: float = _WINDOW_S, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start empty.

        Args:
            seconds: length of the window.
            clock: returns the time, seconds.
        """
        self.seconds = seconds
        self._clock = clock
        self._requests: deque[_EndedRequest] = deque(maxlen=_MAX_REQUESTS)

    def add(self, release: str, ending: Ending, report: Report, usage: sampling_pb2.Usage | None) -> None:
        """Add a request that has just ended.

        Args:
            release: the release that answered.
            ending: how it ended.
            report: its times and images.
            usage: its tokens. None without a complete answer.
        """
        first_token_s = report.ms_since_start(report.first_token_at_s) / 1000 if report.first_token_at_s else None
        self._requests.append(
            _EndedRequest(
                at_s=self._clock(),
                release=release,
                ending=ending,
                first_token_s=first_token_s,
                inter_token_s=report.inter_token_s,
                usage=usage,
                levels=tuple(image.cache_level for image in report.images if image.cache_level),
            )
        )

    def summary(self, release: str) -> operations_pb2.RecentRequests:
        """Sum up the requests of one release."""
        oldest_s = self._clock() - self.seconds
        while self._requests and self._requests[0].at_s < oldest_s:
            self._requests.popleft()
        requests = [request for request in self._requests if request.release == release]
        endings = Counter(request.ending for request in requests)
        usages = [request.usage for request in requests if request.usage is not None]
        levels = Counter(level for request in requests for level in request.levels)
        return operations_pb2.RecentRequests(
            answered=endings["answered"],
            failed=endings["failed"],
            cancelled=endings["cancelled"],
            first_token=_quantiles([request.first_token_s for request in requests]),
            inter_token=_quantiles([request.inter_token_s for request in requests]),
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            cached_prompt_tokens=sum(usage.cached_prompt_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            images=[
                operations_pb2.CacheLevelCount(level=level, images=count) for level, count in sorted(levels.items())
            ],
        )


def _quantiles(times_s: Sequence[float | None]) -> operations_pb2.Quantiles:
    """Return quantiles of the known times, by nearest rank."""
    known = sorted(time_s for time_s in times_s if time_s is not None)
    if not known:
        return operations_pb2.Quantiles()
    p50_s, p95_s = (known[math.ceil(share * len(known)) - 1] for share in (0.5, 0.95))
    return operations_pb2.Quantiles(p50_s=p50_s, p95_s=p95_s)
