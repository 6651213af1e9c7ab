"""Ask questions with asyncio.

async with AsyncClient("127.0.0.1:50050") as client:
    stream = client.generate("What is this?", images=["bag.png"], max_tokens=64)
    async for text in stream:
        print(text, end="", flush=True)
    print(stream.final.usage)
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc

from chassis.cancellation import is_asked_to_stop
from chassis.channels import ChannelTls, open_channel
from chassis.errors import FailedPrecondition, TandemError
from tandem.client.call import AnswerStream, Connection, Envelope
from tandem.client.request import (
    check_size,
    detokenize_request,
    generate_request,
    messages,
    put_image_requests,
    read_source,
    tokenize_request,
)
from tandem.client.types import Answer, GenerateOptions, ImageInput, Images, Message, ReleaseInfo, TokenCount
from tandem.client.wire import release_info, token_count
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

R = TypeVar("R")


class AsyncTextStream(AnswerStream):
    """A streamed answer.

    Iterate to get pieces of text, then read `final`. Leaving the loop early cancels the request. So do `close` and the
    end of a `with` block.
    """

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            try:
                async for text in self._texts():
                    yield text
            except TandemError as error:
                call = self._again(error)
                if call is None:
                    raise
                self._call = call
                async for text in self._texts():
                    yield text
            self._builder.check_complete()
        finally:
            self.close()

    async def _texts(self) -> AsyncIterator[str]:
        with _translate_errors(self._envelope):
            async for response in self._call:
                if text := self._builder.add(response):
                    yield text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(Connection):
    """An asyncio connection to a gateway.

    It belongs to the event loop of its first call.

    Every call raises the errors of `tandem.errors`, each with its `request_id`. A call also raises `OSError` if the
    file of an image cannot be read.
    """

    def _open(self, tls: ChannelTls | None) -> None:
        """Check the TLS files.

        A channel belongs to an event loop, so the first call opens it.
        """
        if tls is not None:
            tls.credentials()
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stub: Any = None  # of the channel

    @property
    def _gateway(self) -> "gateway_pb2_grpc.GatewayAsyncStub":
        """The gateway's stub in the running event loop.

        Raises:
            FailedPrecondition: reason 'CLIENT_CLOSED'. 'NO_LOOP', no event loop runs. 'OTHER_LOOP', the first call was
                in another one.
        """
        self._check_open()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise FailedPrecondition("Call an AsyncClient in a coroutine, or use Client.", reason="NO_LOOP") from None
        if self._channel is None:
            self._loop = loop
            self._channel = open_channel(self.address, tls=self._tls, watch_health=True, use_proxy=self._uses_proxy)
            self._stub = gateway_pb2_grpc.GatewayStub(self._channel)
        if loop is not self._loop:
            raise FailedPrecondition(
                "This AsyncClient was used in another event loop: open one client in each.", reason="OTHER_LOOP"
            )
        stub: gateway_pb2_grpc.GatewayAsyncStub = self._stub
        return stub

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Images = (),
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        """Ask a question or continue a conversation.

        The request is sent at once, before the first iteration.

        Args:
            prompt: the question, or the turns of a conversation. The oldest turn is first, the user's turn last.
            images: images of the question, or one alone, placed before it. The turns of a conversation hold their own.
            options: see `GenerateOptions`.
        """
        return self.send(generate_request(prompt, images, options), **options)

    def send(self, request: gateway_pb2.GatewayGenerateRequest, **options: Unpack[GenerateOptions]) -> AsyncTextStream:
        """Send a request in the contract's own type.

        Only the options `release`, `request_id` and `timeout_s` are used.
        """
        envelope = self._envelope(options)
        check_size(request, self.max_message_bytes)

        def call(message: gateway_pb2.GatewayGenerateRequest) -> Any:
            return self._gateway.Generate(message, metadata=envelope.metadata, timeout=envelope.timeout_s)

        def again(error: TandemError) -> Any:
            replaced = self._uploads.replaced(request, error, self.max_message_bytes)
            return call(replaced) if replaced is not None else None

        return AsyncTextStream(call(request), envelope, again)

    async def ask(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Images = (),
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Return the complete answer. Takes the arguments of `generate`."""
        stream = self.generate(prompt, images=images, **options)
        async for _ in stream:
            pass
        return stream.final

    async def put_image(self, source: ImageInput) -> str:
        """Upload an image and return its digest, which `images` takes.

        The client keeps its last uploads (64 MiB). It sends one again to a gateway that does not know it.

        Args:
            source: path or bytes of the file, or a Pillow image.
        """
        image = read_source(source)
        sha256 = (await self._call(self._gateway.PutImage, put_image_requests(image))).sha256
        self._uploads.add(sha256, image)
        return sha256.hex()

    async def count_tokens(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Images = (),
        system: str | None = None,
    ) -> TokenCount:
        """Count the tokens of a prompt, without running it."""
        request = gateway_pb2.CountTokensRequest(messages=messages(prompt, images, system))
        check_size(request, self.max_message_bytes)
        try:
            return token_count(await self._call(self._gateway.CountTokens, request))
        except TandemError as error:
            replaced = self._uploads.replaced(request, error, self.max_message_bytes)
            if replaced is None:
                raise
        return token_count(await self._call(self._gateway.CountTokens, replaced))

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a text or a conversation.

        Args:
            prompt: a text by itself, or the turns of a conversation, which the chat template surrounds.
        """
        request = tokenize_request(prompt)
        check_size(request, self.max_message_bytes)
        return list((await self._call(self._gateway.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        request = detokenize_request(token_ids)
        return (await self._call(self._gateway.Detokenize, request)).text

    async def rate(self, request_id: str, score: float, label: str = "") -> bool:
        """Rate a recent answer. Return whether it counts.

        Args:
            request_id: of a complete answer of the last hour.
            score: from -1 (bad) to 1 (good).
            label: a word for the gateway's log, without a user's text.
        """
        request = gateway_pb2.FeedbackRequest(request_id=request_id, score=score, label=label)
        return (await self._call(self._gateway.Feedback, request)).counted

    async def models(self) -> list[ReleaseInfo]:
        """Return the releases that the gateway serves."""
        response = await self._call(self._gateway.ListModels, gateway_pb2.GatewayListModelsRequest())
        return [release_info(info) for info in response.releases]

    async def close(self) -> None:
        """Close the connection and cancel its running requests."""
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: Callable[..., Awaitable[R]], request: object) -> R:
        """Make a call that one message answers."""
        envelope = self._envelope()
        with _translate_errors(envelope):
            return await method(request, metadata=envelope.metadata, timeout=envelope.timeout_s)


@contextmanager
def _translate_errors(envelope: Envelope) -> Iterator[None]:
    """Raise gRPC errors as errors of `tandem.errors`.

    gRPC raises `asyncio.CancelledError` for a call that `close` cancelled. It becomes `Cancelled` here, unless the
    task itself was cancelled.
    """
    try:
        with envelope.translate_errors():
            yield
    except asyncio.CancelledError:
        if is_asked_to_stop():
            raise
        raise envelope.cancelled_error() from None
