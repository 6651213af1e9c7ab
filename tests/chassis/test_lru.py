"""The LRU cache against a simple model, and its limits."""

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chassis.lru import LruStore

MAX_BYTES, TTL_S = 100, 10.0
KEYS = st.integers(0, 7)


class Clock:
    """A clock that tests advance."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class LruMachine(RuleBasedStateMachine):
    """Compares the store with a dict ordered by last use."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store: LruStore[int, str] = LruStore(max_bytes=MAX_BYTES, ttl_s=TTL_S, clock=self.clock)
        self.expected: dict[int, tuple[str, int, float]] = {}  # value, bytes, expiry. Least recently used first
        self.uses: list[tuple[int, str, ExitStack]] = []
        self.num_values = 0

    def in_use(self, key: int) -> bool:
        return any(
            used == key and key in self.expected and self.expected[key][0] == value for used, value, _ in self.uses
        )

    @rule(key=KEYS, num_bytes=st.integers(0, MAX_BYTES + 20))
    def put(self, key: int, num_bytes: int) -> None:
        self.num_values += 1
        value = f"value {self.num_values}"
        self.expected.pop(key, None)
        pinned = sum(size for other, (_, size, _) in self.expected.items() if self.in_use(other))
        fits = pinned + num_bytes <= MAX_BYTES
        if fits:
            for other in [other for other in self.expected if not self.in_use(other)]:
                if sum(size for _, size, _ in self.expected.values()) + num_bytes <= MAX_BYTES:
                    break
                del self.expected[other]
            self.expected[key] = (value, num_bytes, self.clock.now_s + TTL_S)
        assert self.store.put(key, value, num_bytes) == fits

    @rule(key=KEYS)
    def begin_use(self, key: int) -> None:
        value, _, expires_at = self.expected.get(key, (None, 0, 0.0))
        if value is not None and self.clock.now_s >= expires_at:
            value = None
            del self.expected[key]
        stack = ExitStack()
        assert stack.enter_context(self.store.use(key)) == value
        if value is not None:
            self.uses.append((key, value, stack))

    @precondition(lambda self: self.uses)
    @rule(index=st.integers(0, 100))
    def end_use(self, index: int) -> None:
        key, value, stack = self.uses.pop(index % len(self.uses))
        stack.close()
        if key in self.expected and self.expected[key][0] == value and not self.in_use(key):
            self.expected[key] = self.expected.pop(key)

    @rule(key=KEYS)
    def drop(self, key: int) -> None:
        self.expected.pop(key, None)
        self.store.drop(key)

    @rule(seconds=st.sampled_from([1.0, 5.0, TTL_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def store_matches_the_model(self) -> None:
        assert self.store.num_bytes == sum(size for _, size, _ in self.expected.values()) <= MAX_BYTES
        assert self.store.num_pinned == sum(self.in_use(key) for key in self.expected)
        assert self.store.num_pinned_bytes == sum(self.expected[key][1] for key in self.expected if self.in_use(key))
        assert len(self.store) == len(self.expected)
        for key in range(8):
            assert (key in self.store) == (key in self.expected and self.clock.now_s < self.expected[key][2])


LruMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLru = LruMachine.TestCase


@pytest.fixture
def store() -> LruStore[str, str]:
    return LruStore(max_bytes=10)


def read(store: LruStore[str, str], key: str) -> str | None:
    with store.use(key) as value:
        return value


def test_the_least_recently_used_entry_is_evicted_first(store: LruStore[str, str]) -> None:
    for key in "abc":
        store.put(key, key, 3)
    assert read(store, "a") == "a"
    store.put("d", "d", 3)
    assert [read(store, key) for key in "abcd"] == ["a", None, "c", "d"]
    assert store.num_evicted == 1


def test_a_pinned_entry_stays_and_a_value_that_does_not_fit_is_not_stored(store: LruStore[str, str]) -> None:
    store.put("a", "a", 6)
    with store.use("a") as value:
        assert value == "a"
        assert not store.put("b", "b", 5)
        assert "a" in store
    assert store.put("b", "b", 5)
    assert "a" not in store


def test_a_value_above_the_limit_evicts_nothing(store: LruStore[str, str]) -> None:
    store.put("a", "a", 6)
    assert not store.put("b", "b", 11)
    assert read(store, "a") == "a"


def test_a_limit_of_zero_stores_nothing() -> None:
    store: LruStore[str, str] = LruStore(max_bytes=0)
    assert not store.put("a", "a", 1)
    assert read(store, "a") is None


def test_an_expired_entry_is_a_miss_even_while_pinned() -> None:
    clock = Clock()
    store: LruStore[str, str] = LruStore(max_bytes=10, ttl_s=5, clock=clock)
    store.put("a", "a", 1)
    with store.use("a") as value:
        clock.now_s = 5
        assert read(store, "a") is None
        assert value == "a"
    assert store.num_expired == 1
    assert (len(store), store.num_bytes, store.num_pinned_bytes) == (0, 0, 0)
