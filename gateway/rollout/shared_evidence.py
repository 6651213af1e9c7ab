"""Choose the requests that count, with what other gateways know."""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import Counter

from gateway.rollout.policy import Arm, Evidence
from gateway.rollout.store import KeyUse

UNSHARED_KEYS = Counter(
    "tandem_rollout_unshared_keys", "Routing keys that the rollout store was too slow or unable to look up."
)

# Longest wait of a request for the store, seconds. After it, the next requests do not wait for a while.
LIMIT_S = 0.05
_PAUSE_S = 1.0

UseKey = Callable[[str, str, str], Awaitable[KeyUse]]  # see `RolloutStore.use_key`
_UNKNOWN = KeyUse(is_first=True, has_other_callers=False)


class SharedEvidence(Evidence):
    """The requests of one rollout that count, over all gateways.

    While the store does not answer, each gateway knows its own keys alone. For one event loop.
    """

    def __init__(self, *, trusts_callers: bool = False) -> None:
        """Begin with the keys of this gateway alone.

        Args:
            trusts_callers: count every request.
        """
        super().__init__(trusts_callers=trusts_callers)
        self._use_key: UseKey | None = None
        self._resumes_at_s = 0.0
        self._asking: set[asyncio.Future[KeyUse]] = set()

    def share(self, use_key: UseKey) -> None:
        """Ask the store about each key that is new here."""
        self._use_key = use_key

    async def counts(self, arm: Arm, rollout_id: str, routing_key: str, caller: str) -> bool:
        """Return whether a request counts, and remember it."""
        is_first = not self.trusts_callers and self.is_new(routing_key)
        if is_first:
            use = await self._use(rollout_id, routing_key, caller)
            is_first = use.is_first
            if use.has_other_callers:
                self.note_other_callers()
        return self.takes(arm, routing_key, caller, is_first=is_first)

    async def _use(self, rollout_id: str, routing_key: str, caller: str) -> KeyUse:
        loop = asyncio.get_running_loop()
        if self._use_key is None:
            return _UNKNOWN
        if loop.time() >= self._resumes_at_s:
            asking = asyncio.ensure_future(self._use_key(rollout_id, routing_key, caller))
            self._asking.add(asking)
            asking.add_done_callback(self._end)
            # A late answer is not cancelled: the store then knows the key.
            await asyncio.wait({asking}, timeout=LIMIT_S)
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                return asking.result()
            self._resumes_at_s = loop.time() + _PAUSE_S
        UNSHARED_KEYS.inc()
        return _UNKNOWN

    def _end(self, asking: "asyncio.Future[KeyUse]") -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # else asyncio logs it
