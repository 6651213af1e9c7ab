"""A fake language service that sends tokens at fixed pace.

It lets a benchmark measure the gateway without the variance of a decoder. It implements the real protocol on the real
server, accepts any prompt and sends one token every `pace_ms`. If the request asks for log-probabilities, each token
contains its send time: `top[0].token_id` is the system's monotonic clock in microseconds, modulo 2**32. All processes
of a machine share this clock.

    python -m benchmarks.tools.paced_language --models models --tag tandem-demo-v1.1.0
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chassis.server import Server, run_service
from chassis.settings import ServiceSettings, load_settings
from checkpoint.config import read_config
from checkpoint.manifest import read_manifest, tokenizer_digest
from checkpoint.store import ModelStore
from tandem.v1 import language_pb2, language_pb2_grpc, model_pb2, sampling_pb2

CLOCK_RANGE = 2**32


def now_us() -> int:
    """Return the system's monotonic clock, microseconds modulo 2**32."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 % CLOCK_RANGE


def since_ms(sent_us: int) -> float:
    """Return the milliseconds since an earlier `now_us`."""
    return (now_us() - sent_us) % CLOCK_RANGE / 1000


class PacedSettings(ServiceSettings):
    """Settings of the paced language service."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_PACED_")

    models: Path = Field(description="folder of the model store")
    tag: str = Field(description="tag that the service reports")
    pace_ms: float = Field(50, ge=0, description="time between the tokens of an answer, milliseconds")


class PacedLanguage(language_pb2_grpc.LanguageServiceServicer):
    """Answers every prompt with the letter 'a', `max_tokens` times."""

    def __init__(self, info: model_pb2.ModelInfo, token_id: int, pace_s: float) -> None:
        self._info = info
        self._token_id = token_id
        self._pace_s = pace_s

    async def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: object
    ) -> model_pb2.ListModelsResponse:
        """Describe the only model."""
        return model_pb2.ListModelsResponse(models=[self._info])

    async def Generate(  # noqa: N802
        self, request_iterator: AsyncIterator[language_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[language_pb2.GenerateResponse]:
        """Read the prompt, then send tokens at the fixed pace."""
        sampling = sampling_pb2.SamplingOptions()
        async for request in request_iterator:
            if request.HasField("whole"):
                sampling = request.whole.start.sampling
                break  # as the real service, which reads nothing after it
            if request.HasField("start"):
                sampling = request.start.sampling
        due_s = time.monotonic()
        for _ in range(sampling.max_tokens):
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            due_s += self._pace_s
            yield language_pb2.GenerateResponse(tokens=self._token(with_logprobs=sampling.HasField("num_logprobs")))
        yield language_pb2.GenerateResponse(
            finished=language_pb2.GenerateFinished(finish_reason=sampling_pb2.FINISH_REASON_LENGTH)
        )

    def _token(self, *, with_logprobs: bool) -> language_pb2.TokenChunk:
        if not with_logprobs:
            return language_pb2.TokenChunk(token_ids=[self._token_id])
        sent = sampling_pb2.TokenLogprob(token_id=now_us())
        position = sampling_pb2.PositionLogprobs(chosen=sampling_pb2.TokenLogprob(token_id=self._token_id), top=[sent])
        return language_pb2.TokenChunk(token_ids=[self._token_id], logprobs=[position])


@asynccontextmanager
async def open_service(settings: PacedSettings, server: Server) -> AsyncIterator[None]:
    """Add the servicer to a server."""
    from tokenizers import Tokenizer

    folder = ModelStore(settings.models).folder(settings.tag)
    config, manifest = read_config(folder), read_manifest(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    info = model_pb2.ModelInfo(
        tag=settings.tag,
        state=model_pb2.MODEL_STATE_READY,
        half_digest=manifest.language.digest,
        language=model_pb2.LanguageModelInfo(
            vision_digest=manifest.language.vision_digest,
            tokenizer_digest=tokenizer_digest(folder),
            width=config.language.width,
            context_length=config.language.context_length,
            num_visual_tokens=config.num_visual_tokens or 0,
            num_levels=config.num_levels,
            max_images=8,
            takes_whole_prompts=True,
        ),
    )
    servicer = PacedLanguage(info, tokenizer.encode("a").ids[0], settings.pace_ms / 1000)  # type: ignore[abstract]
    language_pb2_grpc.add_LanguageServiceServicer_to_server(servicer, server.grpc)
    yield


if __name__ == "__main__":
    run_service("paced-language", load_settings(PacedSettings, sys.argv[1:]), open_service)
