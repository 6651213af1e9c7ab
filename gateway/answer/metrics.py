"""Prometheus metrics of stage calls and images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import Counter, Histogram

from chassis.errors import TandemError
from tandem.v1 import gateway_pb2

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

RELEASE_IMAGES = Counter(
    "tandem_gateway_release_images",
    "Images whose visual tokens were found, by release and cache level.",
    ["release", "level"],
)
IMAGE_READY = Histogram(
    "tandem_gateway_image_ready_seconds",
    "Time from the request to the visual tokens of an image, seconds.",
    ["release"],
    buckets=SECONDS,
)
STAGE_REQUESTS = Counter(
    "tandem_gateway_stage_requests",
    "Requests to a release's stages: one per image (vision), one per attempt to answer (language).",
    ["release", "stage"],
)
STAGE_ERRORS = Counter(
    "tandem_gateway_stage_errors", "Failed requests to a release's stages, by reason.", ["release", "stage", "reason"]
)
CROSSED_VISUAL_TOKENS = Counter(
    "tandem_gateway_crossed_visual_tokens",
    "Images refused because another vision model encoded them than the language model was trained with.",
)


@contextmanager
def stage_call(release: str, stage: Literal["vision", "language"]) -> Iterator[None]:
    """Count a request to a stage, and its failure."""
    STAGE_REQUESTS.labels(release, stage).inc()
    try:
        yield
    except TandemError as error:
        STAGE_ERRORS.labels(release, stage, error.reason).inc()
        raise


def count_image(release: str, image: gateway_pb2.ImageReport) -> None:
    """Count an image whose visual tokens were found."""
    level = gateway_pb2.CacheLevel.Name(image.cache_level).removeprefix("CACHE_LEVEL_").lower()
    RELEASE_IMAGES.labels(release, level).inc()
    IMAGE_READY.labels(release).observe(image.ready_ms / 1000)
