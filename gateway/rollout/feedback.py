"""Take users' ratings of answers, and count them by release.

A gateway remembers for an hour which release gave an answer. During a rollout, the store tells the other gateways, so
a rating may arrive at any of them. Ratings are counted by tenant, because the guard limits the weight of each.
"""

import hashlib
import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

import structlog
from prometheus_client import Counter

from chassis.errors import InvalidArgument, NotFound, TandemError
from gateway.rollout.policy import Arm, Counts
from gateway.rollout.store import RolloutStore
from gateway.rollout.traffic import Choice, Traffic

FEEDBACK = Counter(
    "tandem_gateway_feedback", "Ratings of answers that count, by release and kind.", ["release", "kind"]
)

REMEMBER_S = 3600.0
_MAX_REMEMBERED = 100_000
_NUM_TENANT_NUMBERS = 4096
_LABEL = re.compile(r"[A-Za-z0-9._-]{0,64}", re.ASCII)
_ARMS: dict[str, Arm] = {"stable": "stable", "canary": "canary"}

_V = TypeVar("_V")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Answered:
    """Where an answer came from."""

    release: str
    arm: Arm | None  # None if it was not counted
    window: str

    def text(self) -> str:
        return "\n".join((self.release, self.arm or "", self.window))

    @classmethod
    def of(cls, text: str) -> "_Answered":
        release, arm, window = text.split("\n")
        return cls(release, _ARMS.get(arm), window)


class Feedback:
    """The ratings of answers. For one event loop."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._answered: OrderedDict[str, tuple[float, _Answered]] = OrderedDict()  # with the end of the hour
        self._rated: OrderedDict[str, float] = OrderedDict()
        self._unshared: OrderedDict[str, str] = OrderedDict()  # bounded, because the store can be away for hours
        self._store: RolloutStore | None = None

    def open(self, store: RolloutStore) -> None:
        """Share answers with other gateways through a store."""
        self._store = store

    def remember(self, tenant: str, request_id: str, choice: Choice) -> None:
        """Remember a complete answer for an hour."""
        key = _key(tenant, request_id)
        answered = _Answered(choice.release.name, choice.arm, choice.window)
        _put(self._answered, key, (time.monotonic() + REMEMBER_S, answered))
        self._rated.pop(key, None)
        if choice.arm is not None:
            _put(self._unshared, key, answered.text())

    async def share(self) -> None:
        """Tell the store about the answers since the last call.

        Raises:
            Unavailable: reason 'ROLLOUT_STORE_UNREACHABLE'.
        """
        if self._store is not None and self._unshared:
            shared, self._unshared = self._unshared, OrderedDict()
            await self._store.remember(shared, REMEMBER_S)

    async def rate(self, tenant: str, request_id: str, score: float, label: str) -> bool:
        """Count a rating. Return whether it is the answer's first.

        Raises:
            InvalidArgument: reason 'BAD_SCORE' or 'BAD_LABEL'.
            NotFound: reason 'UNKNOWN_REQUEST', the tenant got no such answer in the last hour.
        """
        _check(score, label)
        key = _key(tenant, request_id)
        answered = await self._find(key)
        if answered is None:
            raise NotFound(
                "No answer of the last hour has this request id: rate complete answers of your own.",
                reason="UNKNOWN_REQUEST",
                field="request_id",
            )
        if not await self._is_first(key):
            return False
        kind = "negative" if score < 0 else "positive" if score > 0 else "neutral"
        FEEDBACK.labels(answered.release, kind).inc()
        _log.info("feedback", rated_request_id=request_id, release=answered.release, score=score, label=label)
        if answered.arm is not None:
            counts = Counts()
            counts.add_rating(answered.arm, _number(tenant), disliked=score < 0)
            self._traffic.add_counts(answered.window, counts)
        return True

    async def _find(self, key: str) -> _Answered | None:
        expires_at_s, answered = self._answered.get(key, (0.0, None))
        if answered is not None and time.monotonic() < expires_at_s:
            return answered
        text = await self._store.recall(key) if self._store is not None else None
        return _Answered.of(text) if text is not None else None

    async def _is_first(self, key: str) -> bool:
        """Return whether no gateway counted it before."""
        if key in self._rated:
            return False
        _put(self._rated, key, time.monotonic())
        try:
            return self._store is None or await self._store.take_lease(f"rated:{key}", key, REMEMBER_S, renew=False)
        except TandemError:
            return True  # better twice than never


def _check(score: float, label: str) -> None:
    if not math.isfinite(score) or not -1 <= score <= 1:
        raise InvalidArgument("The score must be from -1 to 1.", reason="BAD_SCORE", field="score")
    if not _LABEL.fullmatch(label):
        raise InvalidArgument(
            "A label is at most 64 letters, digits, '.', '_' and '-'.", reason="BAD_LABEL", field="label"
        )


def _key(tenant: str, request_id: str) -> str:
    """Return a name for an answer that shows neither."""
    return hashlib.sha256(f"{tenant}\0{request_id}".encode()).hexdigest()


def _number(tenant: str) -> int:
    """Return the number that stands for a tenant in counts."""
    return int.from_bytes(hashlib.sha256(tenant.encode()).digest()[:4], "big") % _NUM_TENANT_NUMBERS


def _put(kept: OrderedDict[str, _V], key: str, value: _V) -> None:
    """Keep a value, and forget the oldest beyond the limit."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _MAX_REMEMBERED:
        kept.popitem(last=False)
