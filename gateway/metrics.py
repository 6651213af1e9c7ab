"""What the gateway counts, for Prometheus."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

from chassis.errors import TandemError
from tandem.v1 import gateway_pb2, sampling_pb2

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

REQUESTS = Counter(
    "tandem_gateway_requests",
    "Answers that ended, by release and outcome: the finish reason, or the reason of the error.",
    ["release", "outcome"],
)
RUNNING = Gauge("tandem_gateway_running", "Answers that are being given.")
WAITING = Gauge("tandem_gateway_waiting", "Requests that wait for their turn.")
REQUEST_BYTES = Gauge("tandem_gateway_request_bytes", "Size of the requests that wait or are being answered, bytes.")
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
FILTERED = Counter(
    "tandem_gateway_filtered",
    "Decisions of the filters, by kind (text, picture, answer), rule and action (refuse, end, mask).",
    ["kind", "rule", "action"],
)
EJECTIONS = Counter(
    "tandem_gateway_ejections", "Models left out at an endpoint for failures in a row, by stage.", ["stage"]
)
FAILOVERS = Counter("tandem_gateway_failovers", "Calls made again on another replica, by stage.", ["stage"])
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

RELEASE_TOKENS = Counter(
    "tandem_gateway_release_tokens",
    "Tokens of answers that were completed, by release and kind: prompt, visual, cached_prompt, completion.",
    ["release", "kind"],
)
RELEASE_PICTURES = Counter(
    "tandem_gateway_release_pictures",
    "Pictures of questions, by release and where their visual tokens came from: the contract's cache level.",
    ["release", "level"],
)
PICTURE_READY = Histogram(
    "tandem_gateway_picture_ready_seconds",
    "From the request to the visual tokens of a picture at hand, seconds.",
    ["release"],
    buckets=_SECONDS,
)
STAGE_REQUESTS = Counter(
    "tandem_gateway_stage_requests",
    "What a release's stages were asked for: visual tokens of a picture (vision), an answer (language).",
    ["release", "stage"],
)
STAGE_ERRORS = Counter("tandem_gateway_stage_errors", "What of it failed, by reason.", ["release", "stage", "reason"])
CROSSED_VISUAL_TOKENS = Counter(
    "tandem_gateway_crossed_visual_tokens",
    "Pictures whose visual tokens came from another encoder than the decoder was trained with; each is refused.",
)


@contextmanager
def stage_call(release: str, stage: Literal["vision", "language"]) -> Iterator[None]:
    """Count what a stage of a release is asked for in the block, and whether it fails."""
    STAGE_REQUESTS.labels(release, stage).inc()
    try:
        yield
    except TandemError as error:
        STAGE_ERRORS.labels(release, stage, error.reason).inc()
        raise


def count_usage(release: str, usage: sampling_pb2.Usage) -> None:
    """Count the tokens of a completed answer."""
    for kind in ("prompt", "visual", "cached_prompt", "completion"):
        RELEASE_TOKENS.labels(release, kind).inc(getattr(usage, f"{kind}_tokens"))


def count_picture(release: str, image: gateway_pb2.ImageReport) -> None:
    """Count a picture whose visual tokens are at hand."""
    level = gateway_pb2.CacheLevel.Name(image.cache_level).removeprefix("CACHE_LEVEL_").lower()
    RELEASE_PICTURES.labels(release, level).inc()
    PICTURE_READY.labels(release).observe(image.ready_ms / 1000)
