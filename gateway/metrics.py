"""What the gateway counts, for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

REQUESTS = Counter(
    "tandem_gateway_requests",
    "Answers that ended, by release and outcome: the finish reason, or the reason of the error.",
    ["release", "outcome"],
)
RUNNING = Gauge("tandem_gateway_running", "Answers that are being given.")
WAITING = Gauge("tandem_gateway_waiting", "Requests that wait for their turn.")
TENANT_REQUESTS = Counter(
    "tandem_gateway_tenant_requests", "Answers that ended, by tenant and outcome.", ["tenant", "outcome"]
)
TENANT_TOKENS = Counter(
    "tandem_gateway_tenant_tokens", "Tokens of prompts and answers, by tenant and kind.", ["tenant", "kind"]
)
TIME_TO_FIRST_TOKEN = Histogram(
    "tandem_gateway_time_to_first_token_seconds",
    "From the request to the first token of its answer, seconds.",
    ["release"],
    buckets=_SECONDS,
)
INTER_TOKEN = Histogram(
    "tandem_gateway_inter_token_seconds",
    "Between two messages of tokens of one answer, seconds.",
    ["release"],
    buckets=_TOKEN_SECONDS,
)
VISUAL_CACHE_REQUESTS = Counter(
    "tandem_gateway_visual_cache_requests",
    "Pictures asked for, by result: hit, miss, or joined to an encoding under way.",
    ["result"],
)
VISUAL_CACHE_EVICTIONS = Counter("tandem_gateway_visual_cache_evictions", "Entries dropped to make room.")
VISUAL_CACHE_BYTES = Gauge("tandem_gateway_visual_cache_bytes", "Bytes of all entries.")
ENCODE_ERRORS = Counter(
    "tandem_gateway_encode_errors", "Pictures the vision service did not encode, by reason.", ["reason"]
)
IMAGE_STORE_BYTES = Gauge("tandem_gateway_image_store_bytes", "Bytes of the pictures clients put here.")
# The cache in Redis, beside what chassis.cache_metrics counts of every level.
CACHE_FOREIGN = Counter(
    "tandem_visual_cache_foreign", "Entries dropped for being whole, but not those asked for.", ["level"]
)
SHARED_SECONDS = Histogram(
    "tandem_gateway_shared_cache_seconds",
    "Operations Redis answered, seconds.",
    ["operation"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
)
SHARED_FAILURES = Counter(
    "tandem_gateway_shared_cache_failures",
    "Operations without an answer that helps: timeout, connection, full, refused, broken, or skipped (not tried).",
    ["operation", "kind"],
)
SHARED_BREAKER_OPEN = Gauge(
    "tandem_gateway_shared_cache_breaker_open", "1 while Redis is left alone because it kept failing."
)
