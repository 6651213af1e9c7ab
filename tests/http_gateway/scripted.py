"""Handlers of a scripted gateway."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from chassis.errors import TandemError
from tandem.v1 import gateway_pb2, sampling_pb2

TAG = "tiny-v1.0.0"


def delta(text: str) -> gateway_pb2.GatewayGenerateResponse:
    return gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text=text))


def finished(
    reason: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_STOP, num_tokens: int = 2
) -> gateway_pb2.GatewayGenerateResponse:
    return gateway_pb2.GatewayGenerateResponse(
        finished=gateway_pb2.GatewayGenerateFinished(
            finish_reason=reason,
            usage=sampling_pb2.Usage(prompt_tokens=7, cached_prompt_tokens=4, completion_tokens=num_tokens),
            release=gateway_pb2.Release(vision_tag=TAG, language_tag=TAG),
        )
    )


@dataclass
class Script:
    """Answers `Generate` as told, and notes the calls."""

    texts: Sequence[str] = ("Hel", "lo")
    error: TandemError | None = None  # raised after the texts
    hangs: bool = False  # after the texts
    is_truncated: bool = False  # ends without the last message
    requests: list[gateway_pb2.GatewayGenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    num_sent: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)  # set it to end the hanging

    async def until_sent(self, num_requests: int, num_texts: int) -> None:
        """Wait until requests have arrived, and texts have been sent."""
        async with asyncio.timeout(20):
            while True:
                if (len(self.requests), self.num_sent) == (num_requests, num_texts):
                    return
                await asyncio.sleep(0.002)

    @property
    def handlers(self) -> dict[str, Any]:
        """Handlers of the gateway."""

        async def generate(
            _self: object, request: gateway_pb2.GatewayGenerateRequest, context: Any
        ) -> AsyncIterator[gateway_pb2.GatewayGenerateResponse]:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            try:
                for text in self.texts:
                    yield delta(text)
                    self.num_sent += 1
                if self.error is not None:
                    raise self.error
                if self.hangs:
                    await self.go.wait()
                if not self.is_truncated:
                    yield finished()
            except (asyncio.CancelledError, GeneratorExit):
                self.cancelled.set()
                raise

        return {"Generate": generate}
