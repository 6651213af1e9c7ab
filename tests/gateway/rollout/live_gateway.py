"""A real gateway with stages scripted per release."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from tokenizers import Tokenizer

from chassis.errors import NotFound, TandemError
from chassis.server import Server
from gateway.service import open_service
from gateway.settings import GatewaySettings
from tandem.v1 import (
    gateway_pb2_grpc,
    language_pb2,
    language_pb2_grpc,
    model_pb2,
    rollout_pb2,
    rollout_pb2_grpc,
    sampling_pb2,
    vision_pb2,
    vision_pb2_grpc,
)
from tests.gateway.halves import language_info, vision_info
from tests.gateway.scripted import Answer, StageServer, ask, read

STABLE, CANARY = "tiny-v1.0.0", "tiny-v1.1.0"


@dataclass
class ScriptedModels:
    """The model calls of a stage, with models tests change."""

    template: model_pb2.ModelInfo
    models: dict[str, model_pb2.ModelInfo] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    load_error: TandemError | None = None
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    num_hanging_loads: int = 0  # the next loads, which hang

    def add_model(self, tag: str) -> None:
        info = model_pb2.ModelInfo()
        info.CopyFrom(self.template)
        info.tag = tag
        self.models[tag] = info

    async def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:  # noqa: N802
        return model_pb2.ListModelsResponse(models=self.models.values())

    async def LoadModel(self, request: Any, context: Any) -> model_pb2.LoadModelResponse:  # noqa: N802
        await self.may_load.wait()
        if self.num_hanging_loads:
            self.num_hanging_loads -= 1
            await asyncio.Event().wait()
        if self.load_error is not None:
            raise self.load_error
        self.add_model(request.tag)
        self.events.append(f"loaded {request.tag}")
        return model_pb2.LoadModelResponse(model=self.models[request.tag])

    async def UnloadModel(self, request: Any, context: Any) -> model_pb2.UnloadModelResponse:  # noqa: N802
        if self.models.pop(request.tag, None) is None:
            raise _unknown_tag()
        self.events.append(f"unloaded {request.tag}")
        return model_pb2.UnloadModelResponse()


class RolloutVision(ScriptedModels, vision_pb2_grpc.VisionServiceServicer):
    """A vision stage that loads models, and never encodes."""

    async def Encode(self, request: Any, context: Any) -> AsyncIterator[vision_pb2.EncodeResponse]:  # noqa: N802
        await asyncio.Event().wait()
        yield vision_pb2.EncodeResponse()


@dataclass
class RolloutLanguage(ScriptedModels, language_pb2_grpc.LanguageServiceServicer):
    """A language stage with one answer per release.

    It waits before the first token while `go` of the release is clear.
    """

    answers: dict[str, list[int]] = field(default_factory=dict)
    errors: dict[str, TandemError] = field(default_factory=dict)
    go: dict[str, asyncio.Event] = field(default_factory=dict)
    malformed: set[str] = field(default_factory=set)  # releases that send too few log-probabilities
    logprobs: dict[str, float] = field(default_factory=dict)  # of each token, by release
    starts: list[language_pb2.GenerateStart] = field(default_factory=list)

    async def Generate(  # noqa: N802
        self, request_iterator: AsyncIterator[language_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[language_pb2.GenerateResponse]:
        requests = [request async for request in request_iterator]
        start = requests[0].whole.start if requests[0].HasField("whole") else requests[0].start
        self.starts.append(start)
        if start.tag not in self.models:
            raise _unknown_tag()
        if start.tag in self.errors:
            raise self.errors[start.tag]
        await self.go[start.tag].wait()
        if start.tag in self.malformed:
            short = language_pb2.TokenChunk(token_ids=[65, 65], logprobs=[sampling_pb2.PositionLogprobs()])
            yield language_pb2.GenerateResponse(tokens=short)
        for token_id in self.answers[start.tag]:
            chosen = sampling_pb2.TokenLogprob(token_id=token_id, logprob=self.logprobs.get(start.tag, -0.5))
            asked = [sampling_pb2.PositionLogprobs(chosen=chosen)] if start.sampling.HasField("num_logprobs") else []
            yield language_pb2.GenerateResponse(tokens=language_pb2.TokenChunk(token_ids=[token_id], logprobs=asked))
        finished = language_pb2.GenerateFinished(finish_reason=sampling_pb2.FINISH_REASON_STOP)
        yield language_pb2.GenerateResponse(finished=finished)


def _unknown_tag() -> NotFound:
    return NotFound("This process has no model of that tag.", reason="UNKNOWN_TAG", field="tag")


@dataclass
class LiveGateway:
    """Stubs of a gateway, and the stages behind it."""

    gateway: Any  # stub of tandem.v1.Gateway
    operator: Any  # stub of tandem.v1.Rollouts
    vision: RolloutVision
    language: RolloutLanguage

    async def ask(self, key: str = "", pin: str | None = None, **options: Any) -> Answer:
        metadata = (("x-tandem-release", pin),) if pin else ()
        return await read(self.gateway.Generate(ask("What is it?", routing_key=key, **options), metadata=metadata))

    async def set(self, *weights: float, overdue_s: float = 60, **further: Any) -> rollout_pb2.Rollout:
        """Begin a rollout whose first step outlasts the test."""
        steps = [rollout_pb2.RolloutStep(weight_percent=weight, seconds=3600) for weight in weights]
        guard = rollout_pb2.RolloutGuard(max_error_rate_increase=0.1, min_requests=20, overdue_s=overdue_s)
        plan = rollout_pb2.RolloutPlan(canary=CANARY, steps=steps, guard=guard, **further)
        response: rollout_pb2.RolloutsSetResponse = await self.operator.Set(rollout_pb2.RolloutsSetRequest(plan=plan))
        return response.rollout

    async def get(self) -> rollout_pb2.Rollout:
        response: rollout_pb2.RolloutsGetResponse = await self.operator.Get(rollout_pb2.RolloutsGetRequest())
        return response.rollout

    async def wait_for_phase(
        self, wanted: "rollout_pb2.RolloutPhase.ValueType", within_s: float = 20
    ) -> rollout_pb2.Rollout:
        """Wait for a phase, and return the rollout."""
        return await self.wait_until(lambda rollout: rollout.phase == wanted, within_s)

    async def wait_until(
        self, is_true: Callable[[rollout_pb2.Rollout], bool], within_s: float = 20
    ) -> rollout_pb2.Rollout:
        """Wait until `is_true` of the rollout, and return it."""
        async with asyncio.timeout(within_s):
            while not is_true(rollout := await self.get()):  # noqa: ASYNC110  (no event to wait for)
                await asyncio.sleep(0.01)
        return rollout


@asynccontextmanager
async def open_gateway(store: Path, tokenizer: Tokenizer, **settings: Any) -> AsyncIterator[LiveGateway]:
    """Run a gateway on a store of both releases.

    The stages have loaded the stable one.
    """
    # The abstract methods are calls that a gateway never makes here.
    vision = RolloutVision(vision_info(store))  # type: ignore[abstract]
    language = RolloutLanguage(language_info(store))  # type: ignore[abstract]
    for stage in (vision, language):
        stage.add_model(STABLE)
        stage.may_load.set()
    for tag, text in ((STABLE, "stable"), (CANARY, "canary")):
        language.answers[tag] = tokenizer.encode(text, add_special_tokens=False).ids
        language.go[tag] = asyncio.Event()
        language.go[tag].set()
    async with (
        StageServer(vision, vision_pb2_grpc, "VisionService") as vision_server,
        StageServer(language, language_pb2_grpc, "LanguageService") as language_server,
    ):
        chosen = GatewaySettings(
            listen="127.0.0.1:0",
            models=store,
            release=STABLE,
            vision=(vision_server.address,),
            language=(language_server.address,),
            **{"rollout_tick_s": 0.02, "refresh_s": 0.1, **settings},
        )
        server = Server(chosen)
        async with open_service(chosen, server):
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                yield LiveGateway(
                    gateway_pb2_grpc.GatewayStub(channel), rollout_pb2_grpc.RolloutsStub(channel), vision, language
                )
            await server.stop(0)
