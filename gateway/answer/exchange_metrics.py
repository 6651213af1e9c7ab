"""Metrics of one exchange: calls of the stages, images, visual tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import Counter, Histogram

from chassis.errors import TandemError
from tandem.v1 import gateway_pb2

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

RELEASE_IMAGES = Counter(
    "tandem_gateway_release_images",
    "Images of questions, by release and where their visual tokens came from: the contract's cache level.",
    ["release", "level"],
)
IMAGE_READY = Histogram(
    "tandem_gateway_image_ready_seconds",
    "From the request to the visual tokens of an image at hand, seconds.",
    ["release"],
    buckets=_SECONDS,
)
STAGE_REQUESTS = Counter(
    "tandem_gateway_stage_requests",
    "What a release's stages were asked for: visual tokens of an image (vision), an answer (language).",
    ["release", "stage"],
)
STAGE_ERRORS = Counter("tandem_gateway_stage_errors", "What of it failed, by reason.", ["release", "stage", "reason"])
CROSSED_VISUAL_TOKENS = Counter(
    "tandem_gateway_crossed_visual_tokens",
    "Images whose visual tokens came from another encoder than the decoder was trained with; each is refused.",
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


def count_image(release: str, image: gateway_pb2.ImageReport) -> None:
    """Count an image whose visual tokens are at hand."""
    level = gateway_pb2.CacheLevel.Name(image.cache_level).removeprefix("CACHE_LEVEL_").lower()
    RELEASE_IMAGES.labels(release, level).inc()
    IMAGE_READY.labels(release).observe(image.ready_ms / 1000)
