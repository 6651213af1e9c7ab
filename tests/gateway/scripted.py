"""Run a real gateway with scripted stages, over real sockets.

Scripted stages behave as a test tells them: an encoder that waits, an answer of chosen tokens, a wrong reply. Real
stages cannot do this on demand.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer

from chassis.errors import NotFound, TandemError
from chassis.grpc_errors import from_rpc_error
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
    """Encodes every image into ones, after `go` is set."""

    info: model_pb2.ModelInfo
    events: list[str]
    go: asyncio.Event = field(default_factory=asyncio.Event)
    error: TandemError | None = None  # raised instead of a reply
    change: Callable[[tensor_pb2.VisualTokens], None] = lambda tokens: None  # modifies a reply
    source: vision_pb2.EncodeSource.ValueType = vision_pb2.ENCODE_SOURCE_ENCODED
    chunk_bytes: int | None = None  # data in the first message of a reply and in each further one. None is all.
    extra_chunks: int = 0  # messages after the last byte
    similar: vision_pb2.SimilarImage | None = None  # every reply has the visual tokens of this image
    known: set[bytes] = field(default_factory=set)  # digests of images that need not be sent
    requests: list[vision_pb2.EncodeRequest] = field(default_factory=list)
    num_encodes: int = 0
    num_cancelled: int = 0
    hangs_on_list: bool = False  # ListModels never returns
    deadlines_s: list[float] = field(default_factory=list)

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: object) -> model_pb2.ListModelsResponse:  # noqa: N802
        if self.hangs_on_list:
            await asyncio.Event().wait()
        return model_pb2.ListModelsResponse(models=[self.info])

    async def Encode(  # noqa: N802
        self, request: vision_pb2.EncodeRequest, context: Any
    ) -> AsyncIterator[vision_pb2.EncodeResponse]:
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
        data, size = tokens.embeddings.data, self.chunk_bytes or len(tokens.embeddings.data)
        tokens.embeddings.data = data[:size]
        yield vision_pb2.EncodeResponse(visual_tokens=tokens, source=self.source, similar=self.similar)
        for start in range(size, len(data), size):
            yield vision_pb2.EncodeResponse(data_chunk=data[start : start + size])
        for _ in range(self.extra_chunks):
            yield vision_pb2.EncodeResponse(data_chunk=b"more")


@dataclass
class ScriptedLanguage(language_pb2_grpc.LanguageServiceServicer):
    """Answers every prompt with `answer`, then finishes or hangs."""

    info: model_pb2.ModelInfo
    events: list[str]
    answer: Sequence[int] = ()
    tokens_per_message: int = 1
    hangs: bool = False
    error: TandemError | None = None  # raised at the first message
    late_error: TandemError | None = None  # raised after the answer's tokens
    num_running: int = 0
    starts: list[language_pb2.GenerateStart] = field(default_factory=list)
    images: list[tensor_pb2.VisualTokens] = field(default_factory=list)
    prefilled: language_pb2.Prefilled | None = None  # sent before the first token
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
                if request.HasField("start") or request.HasField("whole"):
                    self.starts.append(request.whole.start if request.HasField("whole") else request.start)
                if request.HasField("image"):
                    self.images.append(request.image.visual_tokens)
                if self.error is not None:
                    raise self.error
            self.events.append("prompt ends")
            if self.prefilled is not None:
                yield language_pb2.GenerateResponse(prefilled=self.prefilled)
            for first in range(0, len(self.answer), self.tokens_per_message):
                token_ids = self.answer[first : first + self.tokens_per_message]
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


class StageServer:
    """A scripted stage's server, which can restart at its address."""

    def __init__(self, servicer: object, module: Any, service: str) -> None:
        self._add = partial(getattr(module, f"add_{service}Servicer_to_server"), servicer)
        self._server: Server | None = None
        self.address = "127.0.0.1:0"

    async def start(self) -> None:
        self._server = Server(ServiceSettings(listen=self.address))
        self._add(self._server.grpc)
        await self._server.start()
        self.address = f"127.0.0.1:{self._server.port}"

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def __aenter__(self) -> "StageServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


@dataclass
class World:
    """A client's stub, a gateway and two scripted stages."""

    stub: Any  # of tandem.v1.Gateway
    vision: ScriptedVision
    language: ScriptedLanguage
    events: list[str]
    tokenizer: Tokenizer
    stage_servers: dict[str, StageServer]  # 'vision' and 'language'
    address: str  # the gateway's

    def say(self, text: str) -> None:
        """Make the language stage answer with the tokens of `text`."""
        self.language.answer = self.tokenizer.encode(text, add_special_tokens=False).ids

    async def ask(self, *parts: str | bytes, **options: Any) -> "Answer":
        """Ask a question of texts and images."""
        return await read(self.stub.Generate(ask(*parts, **options)))


@dataclass
class Answer:
    """A complete answer."""

    pieces: list[str]
    logprobs: list[sampling_pb2.PositionLogprobs]
    finished: gateway_pb2.GatewayGenerateFinished

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def ask(*parts: str | bytes, **options: Any) -> gateway_pb2.GatewayGenerateRequest:
    """Return a request of one message.

    Args:
        parts: a str is a text, bytes are an image.
        options: further fields of the request.
    """
    content = [
        gateway_pb2.Part(text=part) if isinstance(part, str) else gateway_pb2.Part(image=gateway_pb2.Image(data=part))
        for part in parts
    ]
    message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=content)
    return gateway_pb2.GatewayGenerateRequest(messages=[message], **options)


async def read(call: Any) -> Answer:
    """Read a call to its end and return the answer."""
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
    takes_whole_prompts: bool = True,
    **settings: Any,
) -> AsyncIterator[World]:
    """Run a gateway with scripted stages, for the tiny checkpoint.

    Args:
        store: model store with the tiny checkpoint.
        tokenizer: its tokenizer.
        more_vision: addresses of further vision replicas.
        more_language: addresses of further language replicas.
        takes_whole_prompts: of the language stage. Older ones do not.
        settings: further settings of the gateway.
    """
    events: list[str] = []
    # Only calls the gateway never makes are abstract.
    vision = ScriptedVision(vision_info(store), events)  # type: ignore[abstract]
    language = ScriptedLanguage(language_info(store, takes_whole_prompts), events)  # type: ignore[abstract]
    vision.go.set()
    async with (
        StageServer(vision, vision_pb2_grpc, "VisionService") as vision_server,
        StageServer(language, language_pb2_grpc, "LanguageService") as language_server,
    ):
        chosen = GatewaySettings(
            listen="127.0.0.1:0",
            models=store,
            release=TAG,
            vision=(vision_server.address, *more_vision),
            language=(language_server.address, *more_language),
            **settings,
        )
        server = Server(chosen)
        stage_servers = {"vision": vision_server, "language": language_server}
        async with open_service(chosen, server):
            await server.start()
            address = f"127.0.0.1:{server.port}"
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = gateway_pb2_grpc.GatewayStub(channel)
                yield World(stub, vision, language, events, tokenizer, stage_servers, address)
            await server.stop(0)


async def error_of(call: Awaitable[Any]) -> TandemError:
    """Return the error of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def eventually(is_true: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for a condition on a socket's other side."""
    async with asyncio.timeout(within_s):
        while not is_true():  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.005)
