"""Hostile callers of simulated rollouts.

They are four tenants that work together and make 5 % of all requests. They know which release answers a key once they
have used it. A hostile request counts as an error, which is the worst that it could count as. Where there are
several gateways, they use a key at each.
"""

import itertools
from typing import Literal

import numpy as np

from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.policy.counts import Arm, Counts
from gateway.rollout.policy.evidence import Evidence, KeyFilter
from gateway.rollout.policy.state import State

SHARE = 0.05
_NUM_CALLERS = 4
# 'anywhere' fails with new keys on both releases, 'canary' and 'stable' with keys that are known to get that release.
Aim = Literal["anywhere", "canary", "stable"]


class HostileCallers:
    """The hostile requests of one rollout."""

    def __init__(
        self,
        aim: Aim,
        random: np.random.Generator,
        *,
        all_count: bool,
        num_gateways: int = 1,
        shares_keys: bool = True,
    ) -> None:
        """Begin without known keys.

        Args:
            aim: the release to harm.
            random: draws numbers of requests.
            all_count: count every request, as if all callers were trusted.
            num_gateways: of the rollout.
            shares_keys: whether the gateways tell each other the keys that they have seen.
        """
        self._aim = aim
        self._random = random
        self._known: str | None = None  # a key that gets the release to harm
        self._num_uses = 0  # of the known key
        self._numbers = itertools.count()
        self._evidence = [Evidence(trusts_callers=all_count) for _ in range(num_gateways)]
        self._shared = KeyFilter() if shares_keys else None
        for evidence in self._evidence:
            evidence.takes("stable", "an honest key", "an honest caller", is_first=True)

    def begin_step(self) -> None:
        """Forget the requests of the last step."""
        for evidence in self._evidence:
            evidence.begin_step()

    def add_honest(self, arm: Arm, number: int) -> None:
        """Add honest requests, spread over the gateways."""
        for index, evidence in enumerate(self._evidence):
            evidence.add_first(arm, (number + index) // len(self._evidence))

    def serve(self, counts: Counts, state: State, requests_per_s: float, seconds: float) -> None:
        """Add the hostile requests of some seconds."""
        for _ in range(int(self._random.poisson(SHARE * requests_per_s * seconds))):
            number = next(self._numbers)
            key = self._known or f"hostile {number}"
            arm: Arm = "canary" if takes_canary(key, state.id, state.weight_percent) else "stable"
            is_harmful = self._aim == "anywhere" or key == self._known
            evidence = self._evidence[self._num_uses % len(self._evidence)]
            self._remember(key, arm)
            is_first = evidence.is_new(key) and (self._shared is None or self._shared.add(key))
            if evidence.takes(arm, key, f"hostile {number % _NUM_CALLERS}", is_first=is_first):
                counts.add(arm, "requests")
                counts.add(arm, "errors", int(is_harmful))

    def _remember(self, key: str, arm: Arm) -> None:
        """Use a key again that gets the release to harm.

        With several gateways, once at each.
        """
        num_gateways = len(self._evidence)
        self._num_uses += 1
        is_used_up = 1 < num_gateways <= self._num_uses
        # A higher weight can have moved a known key to the canary.
        self._known = key if arm == self._aim and not is_used_up else None
        if self._known is None:
            self._num_uses = 0
