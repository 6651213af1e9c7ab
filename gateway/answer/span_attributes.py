"""Describe a question and its answer in traces.

Names follow OpenTelemetry's conventions for generative AI. The user's text is never recorded.
"""

from chassis.spans import Attributes
from gateway.answer.question import Question
from tandem.v1 import gateway_pb2, sampling_pb2


def request_attributes(question: Question) -> Attributes:
    """Return the span attributes of a question."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tandem",
        "gen_ai.request.model": question.route.release.name,
        "gen_ai.request.max_tokens": question.sampling.max_tokens,
        "gen_ai.request.temperature": question.sampling.temperature,
        "tandem.images": len(question.images),
    }


def response_attributes(finished: gateway_pb2.GatewayGenerateFinished) -> Attributes:
    """Return the span attributes of a complete answer."""
    return {
        "gen_ai.response.model": str(finished.release.language_tag),
        "gen_ai.response.finish_reasons": [
            sampling_pb2.FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_").lower()
        ],
        "gen_ai.usage.input_tokens": finished.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": finished.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": finished.usage.cached_prompt_tokens,
        "gen_ai.response.time_to_first_chunk": finished.timings.first_token_ms / 1000,
    }
