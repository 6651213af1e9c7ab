"""The verified cache: reads, evictions, pins and corrupted entries."""

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from chassis.verified_cache import ENTRY_OVERHEAD_BYTES, HashedData, VerifiedCache, sha256_of

LEVEL = "test"
ENTRY_BYTES = ENTRY_OVERHEAD_BYTES + 10


@pytest.fixture
def cache() -> VerifiedCache[HashedData]:
    """Return a cache with room for two entries."""
    return VerifiedCache(LEVEL, max_bytes=2 * ENTRY_BYTES, ttl_s=None)


def entry(key: bytes) -> HashedData:
    data = key * 10
    return HashedData(data, sha256_of(data))


def read(cache: VerifiedCache[HashedData], key: bytes) -> HashedData | None:
    with cache.use(key) as found:
        return found


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(f"tandem_visual_cache_{name}", {"level": LEVEL}) or 0.0


def test_evictions_are_counted(cache: VerifiedCache[HashedData]) -> None:
    before = metric("evictions_total")
    for key in (b"a", b"b", b"c", b"d"):
        cache.put(key, entry(key))
    assert [read(cache, key) for key in (b"a", b"b", b"c", b"d")] == [None, None, entry(b"c"), entry(b"d")]
    assert metric("evictions_total") == before + 2
    assert metric("bytes") == cache.num_bytes == 2 * ENTRY_BYTES


@pytest.mark.parametrize("pin", [VerifiedCache.use, VerifiedCache.pin])
def test_a_pinned_entry_is_not_evicted(cache: VerifiedCache[HashedData], pin: type) -> None:
    before = metric("no_room_total")
    cache.put(b"a", entry(b"a"))
    with pin(cache, b"a"):
        assert metric("pinned") == cache.num_pinned == 1
        for key in (b"b", b"c"):
            cache.put(key, entry(key))
        assert read(cache, b"a") == entry(b"a")
    assert metric("pinned") == cache.num_pinned == 0
    assert metric("no_room_total") == before


def test_an_entry_that_does_not_fit_beside_pinned_ones_is_counted(cache: VerifiedCache[HashedData]) -> None:
    before = metric("no_room_total")
    cache.put(b"a", entry(b"a"))
    with cache.use(b"a"):
        cache.put(b"b", entry(b"b" * 100))
    assert read(cache, b"b") is None
    assert metric("no_room_total") == before + 1


@pytest.mark.parametrize("damage", [b"", b"aaaaaaaaab", b"a" * 11])
def test_a_corrupted_entry_is_dropped_counted_and_logged(cache: VerifiedCache[HashedData], damage: bytes) -> None:
    before = metric("corrupted_total")
    damaged = entry(b"a")
    cache.put(b"a", damaged)
    object.__setattr__(damaged, "data", damage)  # as a wild write to memory would
    with capture_logs() as lines:
        assert [read(cache, b"a"), read(cache, b"a")] == [None, None]
    assert [(line["event"], line["cache"], line["visual_key"]) for line in lines] == [
        ("cache entry corrupted", LEVEL, b"a".hex())
    ]
    assert metric("corrupted_total") == before + 1
    assert (cache.num_bytes, cache.num_pinned) == (0, 0)
