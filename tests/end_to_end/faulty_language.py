"""A proxy between gateway and language service that injects faults.

It forwards all calls, and injects one kind of fault into the answers of one tag. It also counts the images whose
encoder is not the one that the decoder was trained with. For this it reads the manifests of the model store itself.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from prometheus_client import Counter
from pydantic_settings import SettingsConfigDict

from chassis.channels import open_channel
from chassis.errors import Internal
from chassis.server import Server, run_service
from chassis.settings import ServiceSettings, load_settings
from checkpoint.manifest import read_manifest
from checkpoint.store import ModelStore
from tandem.v1 import language_pb2, language_pb2_grpc, sampling_pb2

Fault = Literal["none", "errors", "slow", "empty", "hang"]

IMAGES = Counter("faulty_images", "Images in forwarded prompts.")
MISMATCHES = Counter("faulty_encoder_mismatches", "Images from an encoder that the decoder was not trained with.")


class FaultySettings(ServiceSettings):
    """Settings of the proxy."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_FAULTY_")

    models: Path
    upstream: str  # host:port of the real language service
    tag: str = ""  # the fault affects this tag
    fault: Fault = "none"


class FaultyLanguage(language_pb2_grpc.LanguageServiceServicer):
    """Forwards calls to the real service and injects the fault."""

    def __init__(self, settings: FaultySettings, stub: Any) -> None:
        self._settings = settings
        self._stub = stub
        store = ModelStore(settings.models)
        self._vision_digests = {tag: read_manifest(store.folder(tag)).language.vision_digest for tag in store.tags()}

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._stub.ListModels(request)

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._stub.GetModel(request)

    async def LoadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._stub.LoadModel(request)

    async def UnloadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._stub.UnloadModel(request)

    async def Generate(  # noqa: N802
        self, request_iterator: AsyncIterator[language_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[language_pb2.GenerateResponse]:
        started = time.monotonic()
        first = await anext(request_iterator)
        tag = (first.whole.start if first.HasField("whole") else first.start).tag
        fault = self._settings.fault if tag == self._settings.tag else "none"
        if fault == "errors" and random.random() < 0.1:
            raise Internal("The decoder failed.", reason="INJECTED")
        if fault == "hang":
            await asyncio.Event().wait()
        call = self._stub.Generate(self._prompt(first, request_iterator), timeout=context.time_remaining())
        has_token = False
        try:
            async for response in call:
                if response.HasField("tokens"):
                    if fault == "slow" and not has_token:
                        await asyncio.sleep(2 * (time.monotonic() - started))
                    has_token = True
                    if fault == "empty":
                        finished = language_pb2.GenerateFinished(finish_reason=sampling_pb2.FINISH_REASON_STOP)
                        yield language_pb2.GenerateResponse(finished=finished)
                        return
                yield response
        finally:
            call.cancel()

    async def _prompt(
        self, first: language_pb2.GenerateRequest, rest: AsyncIterator[language_pb2.GenerateRequest]
    ) -> AsyncIterator[language_pb2.GenerateRequest]:
        yield first
        async for request in rest:
            if request.HasField("image"):
                IMAGES.inc()
                expected = self._vision_digests[first.start.tag]
                MISMATCHES.inc(request.image.visual_tokens.vision_digest != expected)
            yield request


@asynccontextmanager
async def open_service(settings: FaultySettings, server: Server) -> AsyncIterator[None]:
    """Add the proxy's servicer to a server."""
    async with open_channel(settings.upstream) as channel:
        servicer = FaultyLanguage(settings, language_pb2_grpc.LanguageServiceStub(channel))
        language_pb2_grpc.add_LanguageServiceServicer_to_server(servicer, server.grpc)
        yield


if __name__ == "__main__":
    run_service("faulty-language", load_settings(FaultySettings, sys.argv[1:]), open_service)
