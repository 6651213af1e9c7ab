"""Stages that do as a test tells them, behind real servers on loopback, and a gateway in front of them.

What the real stages cannot show on demand (an encoder that waits, an answer in chosen tokens, a reply that is wrong)
these can; the gateway and the wire are the real ones.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from tokenizers import Tokenizer

from chassis.errors import NotFound, TandemError
from chassis.server import Server
from chassis.settings import ServiceSettings
from checkpoint.identity import visual_key
from gateway.service import open_service
from gateway.settings import GatewaySettings
from tandem.v1 import (
    gateway_pb2,
    gateway_pb2_grpc,
    language_pb2,
    language_pb2_grpc,
    model_pb2,
    sampling_pb2,
    tensor_pb2,
    vision_pb2,
    vision_pb2_grpc,
)
from tests.gateway.halves import ENCODER_ID, TAG, language_info, vision_info


@dataclass
class ScriptedVision(vision_pb2_grpc.VisionServiceServicer):
    """Encodes every image into ones, once `go` is set."""

    info: model_pb2.ModelInfo
    events: list[str]
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error: TandemError | None = None  # raised instead of an answer
    change: Callable[[tensor_pb2.VisualTokens], None] = lambda tokens: None  # spoils an answer
    source: vision_pb2.EncodeSource.ValueType = vision_pb2.ENCODE_SOURCE_ENCODED
    similar: vision_pb2.SimilarImage | None = None  # whose visual tokens every answer brings
    known: set[bytes] = field(default_factory=set)  # digests that are answered without the image
    requests: list[vision_pb2.EncodeRequest] = field(default_factory=list)
    num_encodes: int = 0
    num_cancelled: int = 0
    is_too_busy: bool = False  # to say in time what it holds
    deadlines_s: list[float] = field(default_factory=list)

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: object) -> model_pb2.ListModelsResponse:  # noqa: N802
        if self.is_too_busy:
            await asyncio.Event().wait()
        return model_pb2.ListModelsResponse(models=[self.info])

    async def Encode(self, request: vision_pb2.EncodeRequest, context: Any) -> vision_pb2.EncodeResponse:  # noqa: N802
        self.num_encodes += 1
        self.events.append("encode begins")
        self.deadlines_s.append(context.time_remaining())
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        if not request.image and request.image_sha256 not in self.known:
            raise NotFound("Send the image.", reason="IMAGE_NOT_CACHED")
        encoded = request.image_sha256 if self.similar is None else self.similar.image_sha256
        shape = (self.info.vision.num_visual_tokens, self.info.vision.token_width)
        tokens = tensor_pb2.VisualTokens(
            embeddings=tensor_pb2.Tensor(
                data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=shape, data=b"\x80\x3f" * shape[0] * shape[1]
            ),
            visual_key=visual_key(encoder_id=ENCODER_ID, cache_salt=request.cache_salt, image_sha256=encoded),
            vision_digest=self.info.half_digest,
        )
        self.change(tokens)
        self.events.append("encode ends")
        return vision_pb2.EncodeResponse(visual_tokens=tokens, source=self.source, similar=self.similar)


@dataclass
class ScriptedLanguage(language_pb2_grpc.LanguageServiceServicer):
    """Answers every prompt with `answer`, and then finishes unless it is told to hang."""

    info: model_pb2.ModelInfo
    events: list[str]
    answer: Sequence[int] = ()
    tokens_a_message: int = 1
    hangs: bool = False
    error: TandemError | None = None  # raised at the first message
    late_error: TandemError | None = None  # raised after the answer's tokens
    num_running: int = 0
    starts: list[language_pb2.GenerateStart] = field(default_factory=list)
    images: list[tensor_pb2.VisualTokens] = field(default_factory=list)
    prefilled: language_pb2.Prefilled | None = None  # told before the first token
    deadlines_s: list[float] = field(default_factory=list)

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: object) -> model_pb2.ListModelsResponse:  # noqa: N802
        return model_pb2.ListModelsResponse(models=[self.info])

    async def Generate(  # noqa: N802
        self, request_iterator: AsyncIterator[language_pb2.GenerateRequest], context: Any
    ) -> AsyncIterator[language_pb2.GenerateResponse]:
        self.num_running += 1
        self.deadlines_s.append(context.time_remaining())
        try:
            async for request in request_iterator:
                self.events.append(request.WhichOneof("message") or "")
                if request.HasField("start"):
                    self.starts.append(request.start)
                if request.HasField("image"):
                    self.images.append(request.image.visual_tokens)
                if self.error is not None:
                    raise self.error
            self.events.append("prompt ends")
            if self.prefilled is not None:
                yield language_pb2.GenerateResponse(prefilled=self.prefilled)
            for first in range(0, len(self.answer), self.tokens_a_message):
                token_ids = self.answer[first : first + self.tokens_a_message]
                chosen = [sampling_pb2.TokenLogprob(token_id=token_id, logprob=-0.5) for token_id in token_ids]
                logprobs = [sampling_pb2.PositionLogprobs(chosen=one) for one in chosen]
                asked = self.starts[-1].sampling.HasField("num_logprobs")
                chunk = language_pb2.TokenChunk(token_ids=token_ids, logprobs=logprobs if asked else ())
                yield language_pb2.GenerateResponse(tokens=chunk)
            if self.late_error is not None:
                raise self.late_error
            if self.hangs:
                await asyncio.Event().wait()
            yield language_pb2.GenerateResponse(
                finished=language_pb2.GenerateFinished(finish_reason=sampling_pb2.FINISH_REASON_STOP)
            )
        finally:
            self.num_running -= 1


class Switch:
    """A stage's server, which can be switched off and on again at the same address."""

    def __init__(self, servicer: object, module: Any, service: str) -> None:
        self._add = partial(getattr(module, f"add_{service}Servicer_to_server"), servicer)
        self._server: Server | None = None
        self.address = "127.0.0.1:0"

    async def on(self) -> None:
        self._server = Server(ServiceSettings(listen=self.address))
        self._add(self._server.grpc)
        await self._server.start()
        self.address = f"127.0.0.1:{self._server.port}"

    async def off(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def __aenter__(self) -> "Switch":
        await self.on()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.off()


@dataclass
class World:
    """A gateway between a client and two scripted stages."""

    stub: Any  # of tandem.v1.Gateway
    vision: ScriptedVision
    language: ScriptedLanguage
    events: list[str]
    tokenizer: Tokenizer
    switches: dict[str, Switch]  # 'vision' and 'language'
    address: str  # of the gateway

    def say(self, text: str) -> None:
        """Have the language stage answer with the tokens of `text`."""
        self.language.answer = self.tokenizer.encode(text, add_special_tokens=False).ids

    async def ask(self, *parts: str | bytes, **options: Any) -> "Answer":
        """Ask one question of texts and images and read the whole answer."""
        return await read(self.stub.Generate(ask(*parts, **options)))


@dataclass
class Answer:
    """A whole answer."""

    pieces: list[str]
    logprobs: list[sampling_pb2.PositionLogprobs]
    finished: gateway_pb2.GatewayGenerateFinished

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def ask(*parts: str | bytes, **options: Any) -> gateway_pb2.GatewayGenerateRequest:
    """Return a request of one turn: a str is a text, bytes are an image's."""
    content = [
        gateway_pb2.Part(text=part) if isinstance(part, str) else gateway_pb2.Part(image=gateway_pb2.Image(data=part))
        for part in parts
    ]
    message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=content)
    return gateway_pb2.GatewayGenerateRequest(messages=[message], **options)


async def read(call: Any) -> Answer:
    """Read a call to its end."""
    responses = [response async for response in call]
    deltas = [response.delta for response in responses[:-1]]
    assert responses[-1].WhichOneof("event") == "finished"
    logprobs = [entry for delta in deltas for entry in delta.logprobs]
    return Answer([delta.text for delta in deltas], logprobs, responses[-1].finished)


@asynccontextmanager
async def scripted_world(
    store: Path,
    tokenizer: Tokenizer,
    *,
    more_vision: Sequence[str] = (),
    more_language: Sequence[str] = (),
    **settings: Any,
) -> AsyncIterator[World]:
    """Run a gateway with `settings` over the tiny checkpoint in `store`, between scripted stages that fit it.

    `more_vision` and `more_language` are addresses of further replicas of the stages.
    """
    events: list[str] = []
    # Abstract are only the calls a gateway never makes.
    vision = ScriptedVision(vision_info(store), events)  # type: ignore[abstract]
    language = ScriptedLanguage(language_info(store), events)  # type: ignore[abstract]
    vision.go.set()
    async with (
        Switch(vision, vision_pb2_grpc, "VisionService") as vision_switch,
        Switch(language, language_pb2_grpc, "LanguageService") as language_switch,
    ):
        chosen = GatewaySettings(
            listen="127.0.0.1:0",
            models=store,
            release=TAG,
            vision=(vision_switch.address, *more_vision),
            language=(language_switch.address, *more_language),
            **settings,
        )
        server = Server(chosen)
        switches = {"vision": vision_switch, "language": language_switch}
        async with open_service(chosen, server):
            await server.start()
            address = f"127.0.0.1:{server.port}"
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = gateway_pb2_grpc.GatewayStub(channel)
                yield World(stub, vision, language, events, tokenizer, switches, address)
            await server.stop(0)


async def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait until `holds`, for what the other side of a socket does a moment later."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.005)
