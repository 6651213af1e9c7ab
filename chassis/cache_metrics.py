"""What Prometheus sees of the caches of visual tokens: the same names in every process, told apart by level."""

from prometheus_client import Counter, Gauge

CACHE_REQUESTS = Counter(
    "tandem_visual_cache_requests",
    "Visual tokens asked for, by result: hit, miss, in_flight (another call was computing them), similar (those of "
    "another image that looks the same), failed (no answer) or skipped (not asked, because it keeps failing).",
    ["level", "result"],
)
CACHE_EVICTIONS = Counter("tandem_visual_cache_evictions", "Entries dropped to make room.", ["level"])
CACHE_NO_ROOM = Counter(
    "tandem_visual_cache_no_room", "Visual tokens not kept: they did not fit beside the entries in use.", ["level"]
)
CACHE_CORRUPTED = Counter("tandem_visual_cache_corrupted", "Entries dropped for failing their digest.", ["level"])
CACHE_PINNED = Gauge("tandem_visual_cache_pinned", "Entries in use.", ["level"])
CACHE_BYTES = Gauge("tandem_visual_cache_bytes", "Bytes of all entries.", ["level"])
