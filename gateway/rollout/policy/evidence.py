"""Choose the requests that count in a rollout.

No caller can talk a canary down.

Nobody can know which release a routing key gets before it is used. So the first request of a key cannot be aimed at one
release: it hits both alike, and the guard compares their difference. Later requests of a key can be aimed. However many
callers aim them, they get a small share of the requests that count.

One caller alone, such as a test, uses few keys. Then later requests count, and no key weighs much more than another.

Gateways with one store ask it whether another has seen the key. So its first request at one of them counts, not the
first at each.
"""

import hashlib
from collections import Counter, defaultdict

from gateway.rollout.policy.counts import Arm

# Of a release's counted requests, those that could be aimed. Half of the usual bound of a rate.
MAX_AIMED_SHARE = 0.01
_FEW_KEYS = 100  # of one caller. With more, their first requests are evidence enough
_FAIR_SHARES = 2  # of one key among few: twice its share if all keys were used alike
_FILTER_BITS = 2**25  # 4 MiB
_NUM_HASHES = 4
_MAX_KEYS = 4_000_000  # with so many, a new key is taken for a known one in a few of a hundred cases
_MAX_CALLERS = 2  # more are not told apart


class KeyFilter:
    """A Bloom filter of the routing keys that were used.

    It never forgets a key. It may take a new one for a known one, for both releases alike.
    """

    def __init__(self) -> None:
        self._bits = bytearray(_FILTER_BITS // 8)
        self._num_keys = 0

    def add(self, routing_key: str) -> bool:
        """Add a key, and return whether it is new."""
        is_new = False
        for number in filter_bits(routing_key):
            place, bit = divmod(number, 8)
            if not self._bits[place] >> bit & 1:
                self._bits[place] |= 1 << bit
                is_new = True
        self._num_keys += is_new
        return is_new and self._num_keys <= _MAX_KEYS


def filter_bits(routing_key: str) -> list[int]:
    """Return a key's bits in a filter, below 2**25."""
    digest = hashlib.sha256(routing_key.encode()).digest()
    return [int.from_bytes(digest[at : at + 4], "big") % _FILTER_BITS for at in range(0, 4 * _NUM_HASHES, 4)]


class Evidence:
    """The requests of one rollout that count, at one gateway."""

    def __init__(self, *, trusts_callers: bool = False) -> None:
        """Begin without requests.

        Args:
            trusts_callers: count every request.
        """
        self.trusts_callers = trusts_callers
        self._keys: KeyFilter | None = None  # from the first request, as it is large
        self._callers: set[str] = set()
        self._has_others = False  # whether another gateway has other callers
        self._num_keys: Counter[Arm] = Counter()
        self.begin_step()

    def begin_step(self) -> None:
        """Forget the requests of the last step, not its keys."""
        self._counted: Counter[Arm] = Counter()
        self._aimed: Counter[Arm] = Counter()
        self._by_key: defaultdict[Arm, Counter[str]] = defaultdict(Counter)  # while there are few

    def begin_rollout(self) -> None:
        """Forget all keys: each gets a release anew."""
        self._keys = None
        self._num_keys.clear()
        self.begin_step()

    def add_first(self, arm: Arm, number: int) -> None:
        """Add requests that each have a new key."""
        self._counted[arm] += number
        self._num_keys[arm] += number

    def is_new(self, routing_key: str) -> bool:
        """Remember a key, and return whether it is new here."""
        self._keys = self._keys or KeyFilter()
        return self._keys.add(routing_key)

    def note_other_callers(self) -> None:
        """Note that another gateway has other callers."""
        self._has_others = True

    def takes(self, arm: Arm, routing_key: str, caller: str, *, is_first: bool) -> bool:
        """Return whether a request counts, and remember it.

        Args:
            arm: the release that answers.
            routing_key: that chose the release.
            caller: the tenant, or the address of a caller without one.
            is_first: whether no gateway has seen the key before.
        """
        if self.trusts_callers:
            return True
        if len(self._callers) < _MAX_CALLERS:
            self._callers.add(caller)
        if is_first:
            self.add_first(arm, 1)
            return True
        if self._aimed[arm] + 1 <= MAX_AIMED_SHARE * (self._counted[arm] + 1):
            self._aimed[arm] += 1
        elif not self._is_fair(arm, routing_key):
            return False
        self._counted[arm] += 1
        return True

    def _is_fair(self, arm: Arm, routing_key: str) -> bool:
        """Return whether one of few keys is within its share."""
        if self._has_others or len(self._callers) > 1 or self._num_keys[arm] > _FEW_KEYS:
            return False
        by_key = self._by_key[arm]  # another gateway may have seen the first requests of these keys
        share = _FAIR_SHARES / max(1, self._num_keys[arm], len(by_key))
        if len(by_key) > _FEW_KEYS or by_key[routing_key] + 1 > share * (self._counted[arm] + 1):
            return False
        by_key[routing_key] += 1
        return True
