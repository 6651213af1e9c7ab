"""Metrics of the visual-token caches, labelled by cache level."""

from prometheus_client import Counter, Gauge

CACHE_REQUESTS = Counter(
    "tandem_visual_cache_requests",
    "Lookups of visual tokens, by result: hit, miss, in_flight (joined another call's computation), similar (answered "
    "by an image that looks the same), failed (the cache did not answer) or skipped (the cache failed too often).",
    ["level", "result"],
)
CACHE_EVICTIONS = Counter("tandem_visual_cache_evictions", "Entries evicted to make room.", ["level"])
CACHE_NO_ROOM = Counter(
    "tandem_visual_cache_no_room", "Entries not stored because pinned entries left no room.", ["level"]
)
CACHE_CORRUPTED = Counter(
    "tandem_visual_cache_corrupted", "Entries dropped because their digest did not match.", ["level"]
)
CACHE_PINNED = Gauge("tandem_visual_cache_pinned", "Entries in use.", ["level"])
CACHE_BYTES = Gauge("tandem_visual_cache_bytes", "Bytes of all entries.", ["level"])
