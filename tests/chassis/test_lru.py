"""The byte-budgeted store: what it keeps, what it lets go, and what it never does."""

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chassis.lru import LruStore

BUDGET, TTL_S = 100, 10.0
KEYS = st.integers(0, 7)


class Clock:
    """Seconds that pass when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Lru(RuleBasedStateMachine):
    """Beside the store, a model so plain that it can be read: a list in order of last use."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store: LruStore[int, str] = LruStore(max_bytes=BUDGET, ttl_s=TTL_S, clock=self.clock)
        self.kept: dict[int, tuple[str, int, float]] = {}  # value, bytes, expiry; least recently used first
        self.uses: list[tuple[int, str, ExitStack]] = []
        self.num_values = 0

    def in_use(self, key: int) -> bool:
        return any(used == key and key in self.kept and self.kept[key][0] == value for used, value, _ in self.uses)

    @rule(key=KEYS, num_bytes=st.integers(0, BUDGET + 20))
    def put(self, key: int, num_bytes: int) -> None:
        self.num_values += 1
        value = f"value {self.num_values}"
        self.kept.pop(key, None)
        pinned = sum(size for other, (_, size, _) in self.kept.items() if self.in_use(other))
        fits = pinned + num_bytes <= BUDGET
        if fits:
            for other in [other for other in self.kept if not self.in_use(other)]:
                if sum(size for _, size, _ in self.kept.values()) + num_bytes <= BUDGET:
                    break
                del self.kept[other]
            self.kept[key] = (value, num_bytes, self.clock.now_s + TTL_S)
        assert self.store.put(key, value, num_bytes) == fits

    @rule(key=KEYS)
    def begin_use(self, key: int) -> None:
        value, _, expires_at = self.kept.get(key, (None, 0, 0.0))
        if value is not None and self.clock.now_s >= expires_at:
            value = None
            del self.kept[key]
        stack = ExitStack()
        assert stack.enter_context(self.store.use(key)) == value
        if value is not None:
            self.uses.append((key, value, stack))

    @precondition(lambda self: self.uses)
    @rule(index=st.integers(0, 100))
    def end_use(self, index: int) -> None:
        key, value, stack = self.uses.pop(index % len(self.uses))
        stack.close()
        if key in self.kept and self.kept[key][0] == value and not self.in_use(key):
            self.kept[key] = self.kept.pop(key)

    @rule(key=KEYS)
    def drop(self, key: int) -> None:
        self.kept.pop(key, None)
        self.store.drop(key)

    @rule(seconds=st.sampled_from([1.0, 5.0, TTL_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def agrees(self) -> None:
        assert self.store.num_bytes == sum(size for _, size, _ in self.kept.values()) <= BUDGET
        assert self.store.num_pinned == sum(self.in_use(key) for key in self.kept)
        assert self.store.num_pinned_bytes == sum(self.kept[key][1] for key in self.kept if self.in_use(key))
        assert len(self.store) == len(self.kept)
        for key in range(8):
            assert (key in self.store) == (key in self.kept and self.clock.now_s < self.kept[key][2])


Lru.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLru = Lru.TestCase


@pytest.fixture
def store() -> LruStore[str, str]:
    return LruStore(max_bytes=10)


def read(store: LruStore[str, str], key: str) -> str | None:
    with store.use(key) as value:
        return value


def test_the_least_recently_used_leaves_first(store: LruStore[str, str]) -> None:
    for key in "abc":
        store.put(key, key, 3)
    assert read(store, "a") == "a"
    store.put("d", "d", 3)
    assert [read(store, key) for key in "abcd"] == ["a", None, "c", "d"]
    assert store.num_evicted == 1


def test_what_is_in_use_stays_and_what_finds_no_room_is_not_kept(store: LruStore[str, str]) -> None:
    store.put("a", "a", 6)
    with store.use("a") as value:
        assert value == "a"
        assert not store.put("b", "b", 5)
        assert "a" in store
    assert store.put("b", "b", 5)
    assert "a" not in store


def test_too_large_a_value_evicts_nobody(store: LruStore[str, str]) -> None:
    store.put("a", "a", 6)
    assert not store.put("b", "b", 11)
    assert read(store, "a") == "a"


def test_a_budget_of_nothing_keeps_nothing() -> None:
    store: LruStore[str, str] = LruStore(max_bytes=0)
    assert not store.put("a", "a", 1)
    assert read(store, "a") is None


def test_an_old_value_is_not_given_out_even_while_another_uses_it() -> None:
    clock = Clock()
    store: LruStore[str, str] = LruStore(max_bytes=10, ttl_s=5, clock=clock)
    store.put("a", "a", 1)
    with store.use("a") as value:
        clock.now_s = 5
        assert read(store, "a") is None
        assert value == "a"
    assert store.num_expired == 1
    assert (len(store), store.num_bytes, store.num_pinned_bytes) == (0, 0, 0)
