"""Callers of simulated rollouts who want a wrong decision.

They are four tenants who work together and make 5 % of all requests. They know which release answers a routing key once
they have used it. A hostile request counts as an error, which is the worst that it could count as.
"""

import itertools
from typing import Literal

import numpy as np

from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.policy.counts import Arm, Counts
from gateway.rollout.policy.evidence import Evidence
from gateway.rollout.policy.state import State

SHARE = 0.05
_NUM_CALLERS = 4
# 'anywhere' fails with new keys on both releases, 'canary' and 'stable' with keys that are known to get that release.
Aim = Literal["anywhere", "canary", "stable"]


class HostileCallers:
    """The hostile requests of one rollout."""

    def __init__(self, aim: Aim, random: np.random.Generator, *, all_count: bool) -> None:
        """Begin without known keys.

        Args:
            aim: the release to harm.
            random: draws numbers of requests.
            all_count: count every request, as if all callers were trusted.
        """
        self._aim = aim
        self._random = random
        self._known: str | None = None  # a key that gets the release to harm
        self._numbers = itertools.count()
        self.evidence = Evidence(trusts_callers=all_count)
        self.evidence.takes("stable", "an honest key", "an honest caller")

    def serve(self, counts: Counts, state: State, requests_per_s: float, seconds: float) -> None:
        """Add the hostile requests of some seconds."""
        for _ in range(int(self._random.poisson(SHARE * requests_per_s * seconds))):
            number = next(self._numbers)
            key = self._known or f"hostile {number}"
            arm: Arm = "canary" if takes_canary(key, state.id, state.weight_percent) else "stable"
            is_harmful = self._aim == "anywhere" or key == self._known
            if arm == self._aim:
                self._known = key
            elif key == self._known:  # a higher weight has moved it to the canary
                self._known = None
            if self.evidence.takes(arm, key, f"hostile {number % _NUM_CALLERS}"):
                counts.add(arm, "requests")
                counts.add(arm, "errors", int(is_harmful))
