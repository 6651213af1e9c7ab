"""The end of an answer as JSON: finish reason, usage, report."""

from collections.abc import Sequence
from typing import Any

from tandem.v1 import gateway_pb2, sampling_pb2

Finished = gateway_pb2.GatewayGenerateFinished

_FINISH_REASONS = {
    sampling_pb2.FINISH_REASON_STOP: "stop",
    sampling_pb2.FINISH_REASON_LENGTH: "length",
    sampling_pb2.FINISH_REASON_FILTERED: "content_filter",
}
_CACHE_LEVELS = {
    level.number: level.name.removeprefix("CACHE_LEVEL_").lower() for level in gateway_pb2.CacheLevel.DESCRIPTOR.values
}


def finish_reason(finished: Finished, *, has_calls: bool) -> str:
    """Return OpenAI's name of the finish reason.

    Args:
        finished: the end of the answer.
        has_calls: whether the answer has calls of tools.
    """
    if has_calls and finished.finish_reason == sampling_pb2.FINISH_REASON_STOP:
        return "tool_calls"
    return _FINISH_REASONS.get(finished.finish_reason, "length")


def usage(choices: Sequence[Finished]) -> dict[str, Any]:
    """Return the usage of all choices, which share one prompt."""
    first = choices[0].usage
    completion_tokens = sum(one.usage.completion_tokens for one in choices)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": first.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": first.cached_prompt_tokens, "image_tokens": first.visual_tokens},
    }


def report(request_id: str, finished: Finished) -> dict[str, Any]:
    """Return Tandem's own report on a request."""
    timings = finished.timings
    stages = ("prepare", "vision", "queue", "prefill", "first_token", "decode", "total")
    vision, language = finished.release.vision_tag, finished.release.language_tag
    return {
        "request_id": request_id,
        "release": language if vision == language else f"{vision},{language}",
        "timings_ms": {stage: round(getattr(timings, f"{stage}_ms"), 3) for stage in stages},
        "images": [_image(image) for image in finished.images],
        "cached_prompt_tokens": finished.usage.cached_prompt_tokens,
    }


def _image(image: gateway_pb2.ImageReport) -> dict[str, Any]:
    return {
        "sha256": image.sha256.hex(),
        "cache_level": _CACHE_LEVELS.get(image.cache_level, "miss"),
        "num_visual_tokens": image.num_visual_tokens,
        "ready_ms": round(image.ready_ms, 3),
    }
