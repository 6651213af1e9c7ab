"""What Prometheus sees of the vision stage, beside the metrics of every server."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DECODE_SECONDS = Histogram(
    "tandem_vision_decode_seconds", "Checking, decoding and resizing one picture, seconds.", buckets=_SECONDS
)
QUEUE_SECONDS = Histogram(
    "tandem_vision_queue_seconds", "One picture's wait for a place in a batch, seconds.", ["tag"], buckets=_SECONDS
)
FORWARD_SECONDS = Histogram(
    "tandem_vision_forward_seconds", "The forward pass of one batch, seconds.", ["tag"], buckets=_SECONDS
)
BATCH_SIZE = Histogram(
    "tandem_vision_batch_size", "Pictures in one forward pass.", ["tag"], buckets=(1, 2, 4, 8, 16, 32, 64)
)
REFUSALS = Counter("tandem_vision_refusals", "Pictures that were not encoded, by reason.", ["reason"])

# The caches of visual tokens of all processes share these names and differ by level.
LEVEL = "vision"
CACHE_REQUESTS = Counter(
    "tandem_visual_cache_requests",
    "Visual tokens asked for, by result: hit, miss, in_flight (another call was computing them) or similar (those of "
    "another picture that looks the same).",
    ["level", "result"],
)
CACHE_EVICTIONS = Counter("tandem_visual_cache_evictions", "Entries dropped to make room.", ["level"])
CACHE_CORRUPTED = Counter("tandem_visual_cache_corrupted", "Entries dropped for failing their digest.", ["level"])
CACHE_BYTES = Gauge("tandem_visual_cache_bytes", "Bytes of all entries.", ["level"])
