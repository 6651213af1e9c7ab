"""Turn protobuf messages into the client's plain types."""

import re
from dataclasses import fields
from typing import Any, Literal

from google.protobuf.descriptor import EnumDescriptor

from chassis.errors import Internal
from tandem.client.types import (
    Answer,
    Half,
    ImageReport,
    PositionLogprobs,
    Release,
    ReleaseInfo,
    SamplingDefaults,
    Timings,
    TokenCount,
    TokenLogprob,
    Usage,
)
from tandem.v1 import gateway_pb2, model_pb2, sampling_pb2

_FINISH_REASONS: dict[int, Literal["stop", "length", "filtered"]] = {
    sampling_pb2.FINISH_REASON_STOP: "stop",
    sampling_pb2.FINISH_REASON_LENGTH: "length",
    sampling_pb2.FINISH_REASON_FILTERED: "filtered",
}


class AnswerBuilder:
    """Builds an answer from the messages of its stream."""

    def __init__(self, request_id: str) -> None:
        self._answer: Answer | None = None
        self._request_id = request_id
        self._texts: list[str] = []
        self._logprobs: list[PositionLogprobs] = []

    def add(self, response: gateway_pb2.GatewayGenerateResponse) -> str:
        """Add one message and return its text, possibly empty."""
        if response.HasField("finished"):
            self._answer = self._finish(response.finished)
            return ""
        self._texts.append(response.delta.text)
        self._logprobs += map(_position, response.delta.logprobs)
        return response.delta.text

    @property
    def text(self) -> str:
        """The text received so far."""
        return "".join(self._texts)

    def check_complete(self) -> None:
        """Check that the stream ended with its last message.

        Raises:
            Internal: reason 'TRUNCATED_STREAM', the last message is missing.
        """
        if self._answer is None:
            error = Internal("The gateway ended the answer too early: try again.", reason="TRUNCATED_STREAM")
            error.request_id = self._request_id
            raise error

    @property
    def final(self) -> Answer:
        """The complete answer.

        Raises:
            RuntimeError: the stream was not read to its end.
        """
        if self._answer is None:
            raise RuntimeError("the answer is not complete: read the stream to its end first")
        return self._answer

    def _finish(self, finished: gateway_pb2.GatewayGenerateFinished) -> Answer:
        usage, timings = finished.usage, finished.timings
        return Answer(
            text=self.text,
            finish_reason=_FINISH_REASONS.get(finished.finish_reason, "length"),
            usage=Usage(
                prompt_tokens=usage.prompt_tokens,
                visual_tokens=usage.visual_tokens,
                cached_prompt_tokens=usage.cached_prompt_tokens,
                completion_tokens=usage.completion_tokens,
            ),
            timings=Timings(
                prepare_ms=timings.prepare_ms,
                vision_ms=timings.vision_ms,
                queue_ms=timings.queue_ms,
                prefill_ms=timings.prefill_ms,
                first_token_ms=timings.first_token_ms,
                decode_ms=timings.decode_ms,
                total_ms=timings.total_ms,
            ),
            release=_release(finished.release),
            images=tuple(map(_image_report, finished.images)),
            request_id=self._request_id,
            logprobs=tuple(self._logprobs),
        )


def token_count(response: gateway_pb2.CountTokensResponse) -> TokenCount:
    """Return the token counts of a prompt."""
    return TokenCount(
        prompt_tokens=response.prompt_tokens,
        visual_tokens=response.visual_tokens,
        remaining_tokens=response.remaining_tokens,
    )


def release_info(info: gateway_pb2.ReleaseInfo) -> ReleaseInfo:
    """Return one release of the gateway's list."""
    return ReleaseInfo(
        release=_release(info.release),
        ready=info.ready,
        is_default=info.is_default,
        vision=_half(info.vision),
        language=_half(info.language),
        image_size=info.vision.vision.image_size,
        num_visual_tokens=info.vision.vision.num_visual_tokens,
        max_images=info.language.language.max_images,
        context_length=info.language.language.context_length,
        max_visual_tokens=info.vision.vision.max_visual_tokens,
        kind=info.kind,
        default_sampling=_sampling_defaults(info.default_sampling),
    )


def _sampling_defaults(options: sampling_pb2.SamplingOptions) -> SamplingDefaults:
    """Return the options that are set.

    Their floats have 24 bits, so the digits beyond are noise.
    """
    given: dict[str, Any] = {field.name: value for field, value in options.ListFields()}
    names = (field.name for field in fields(SamplingDefaults))
    return SamplingDefaults(**{name: round(given[name], 6) for name in names if name in given})


def _release(release: gateway_pb2.Release) -> Release:
    return Release(vision_tag=release.vision_tag, language_tag=release.language_tag)


def _image_report(report: gateway_pb2.ImageReport) -> ImageReport:
    return ImageReport(
        sha256=report.sha256.hex(),
        cache_level=_name(gateway_pb2.CacheLevel.DESCRIPTOR, report.cache_level),
        num_visual_tokens=report.num_visual_tokens,
        ready_ms=report.ready_ms,
        similar_sha256=report.similar_sha256.hex(),
        similarity=report.similarity,
        grid=(report.grid.rows, report.grid.columns) if report.HasField("grid") else None,
    )


def _position(position: sampling_pb2.PositionLogprobs) -> PositionLogprobs:
    return PositionLogprobs(chosen=_logprob(position.chosen), top=tuple(map(_logprob, position.top)))


def _logprob(logprob: sampling_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(token_id=logprob.token_id, logprob=logprob.logprob)


def _half(info: model_pb2.ModelInfo) -> Half:
    return Half(
        tag=info.tag,
        state=_name(model_pb2.ModelState.DESCRIPTOR, info.state),
        backend=info.backend,
        device=info.device,
        precision=info.precision,
        num_parameters=info.num_parameters,
        num_weight_bytes=info.num_weight_bytes,
    )


def _name(enum: EnumDescriptor, number: int) -> str:
    """Return an enum value's short name, such as 'miss'.

    The full name is CACHE_LEVEL_MISS. A value of a newer server has no name here, so its number is returned.
    """
    value = enum.values_by_number.get(number)
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    return value.name.removeprefix(prefix).lower() if value else str(number)
