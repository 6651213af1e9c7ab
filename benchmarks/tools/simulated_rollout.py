"""A bad canary in simulated traffic, judged by the real guard."""

import asyncio

import numpy as np

from benchmarks.tools.simulated_replicas import Work
from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.policy.controller import begin, start, tick
from gateway.rollout.policy.counts import Counts, Outcome
from gateway.rollout.policy.plan import read_plan
from gateway.rollout.policy.probing import Probing
from gateway.rollout.policy.state import Phase

TICK_S = 0.2
_PLAN = {
    "stable": "demo-v1.0.0",
    "canary": "demo-v1.1.0",
    "steps": [{"weight_percent": 1, "seconds": 60}, {"weight_percent": 100, "seconds": 0}],
    "guard": {"max_error_rate_increase": 0.02, "max_first_token_ratio": 1.5, "max_inter_token_ratio": 1.5},
}


class SimulatedRollout:
    """One rollout from its first step on, in simulated time."""

    def __init__(self, error_rate: float, random: np.random.Generator) -> None:
        """Start with 1 % of the conversations.

        Args:
            error_rate: share of the canary's requests that fail.
            random: draws them.
        """
        self.num_harmed = 0
        self.ended_s: float | None = None  # time from the start to the decision
        self._error_rate, self._random = error_rate, random
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        prepared = begin(None, read_plan(_PLAN), in_force="demo-v1.0.0", rollout_id="1", now_s=self._started_s)
        self._state = start(prepared, self._started_s, Probing(problem="There are none."))
        self._counts = Counts()
        self._loop.call_later(TICK_S, self._tick)

    @property
    def phase(self) -> str:
        """Return the phase of the rollout."""
        return str(self._state.phase)

    def lets_pass(self, conversation: int) -> bool:
        """Return False if the canary fails a request."""
        if not self._is_canary(conversation) or self._random.random() >= self._error_rate:
            return True
        self.num_harmed += 1
        self._add(conversation, failed=True)
        return False

    def count(self, conversation: int, work: Work | None) -> None:
        """Count a request that ended, None for one that failed."""
        if work is None or work.first_token_s is None:
            self._add(conversation, failed=True)
        else:
            first_token_s = work.first_token_s - work.arrived_s
            self._add(conversation, failed=False, first_token_s=first_token_s, inter_token_s=work.token_s)

    def _is_canary(self, conversation: int) -> bool:
        return takes_canary(str(conversation), "1", self._state.weight_percent)

    def _add(
        self, conversation: int, *, failed: bool, first_token_s: float | None = None, inter_token_s: float | None = None
    ) -> None:
        outcome = Outcome(
            kind="images at hand", failed=failed, empty=False, first_token_s=first_token_s, inter_token_s=inter_token_s
        )
        self._counts.add_outcome("canary" if self._is_canary(conversation) else "stable", outcome)

    def _tick(self) -> None:
        now_s = self._loop.time()
        following = tick(self._state, self._counts, now_s) or self._state
        if following.window != self._state.window:
            self._counts = Counts()
        self._state = following
        if following.phase is Phase.RUNNING:
            self._loop.call_later(TICK_S, self._tick)
        else:
            self.ended_s = now_s - self._started_s
