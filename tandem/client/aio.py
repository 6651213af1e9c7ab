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
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

from chassis.cancellation import is_asked_to_stop
from chassis.channels import ChannelTls, open_channel
from tandem.client import wire
from tandem.client.call import AnswerStream, Connection, Envelope
from tandem.client.types import Answer, GenerateOptions, ImageInput, Message, ReleaseInfo, TokenCount
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

R = TypeVar("R")


class AsyncTextStream(AnswerStream):
    """A streamed answer.

    Iterate to get pieces of text, then read `final`. Leaving the loop early cancels the request. So do `close` and the
    end of a `with` block.
    """

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            with _translate_errors(self._envelope):
                async for response in self._call:
                    if text := self._builder.add(response):
                        yield text
            self._builder.check_complete()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(Connection):
    """An asyncio connection to a gateway, for one event loop.

    Every call raises the errors of `tandem.errors`, each with its `request_id`. A call also raises `OSError` if the
    file of an image cannot be read.
    """

    def _open(self, tls: ChannelTls | None) -> None:
        self._channel = open_channel(self.address, tls=tls, watch_health=True)
        self._gateway = gateway_pb2_grpc.GatewayStub(self._channel)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Sequence[ImageInput] = (),
        **options: Unpack[GenerateOptions],
    ) -> AsyncTextStream:
        """Ask a question or continue a conversation.

        The request is sent at once, before the first iteration.

        Args:
            prompt: the question, or the turns of a conversation. The oldest turn is first, the user's turn last.
            images: images of the question, placed before it. The turns of a conversation hold their own images.
            options: see `GenerateOptions`.
        """
        return self.send(wire.generate_request(prompt, images, options), **options)

    def send(self, request: gateway_pb2.GatewayGenerateRequest, **options: Unpack[GenerateOptions]) -> AsyncTextStream:
        """Send a request in the contract's own type.

        Only the options `release`, `request_id` and `timeout_s` are used.
        """
        envelope = self._envelope(options)
        call = self._gateway.Generate(request, metadata=envelope.metadata, timeout=envelope.timeout_s)
        return AsyncTextStream(call, envelope)

    async def ask(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Sequence[ImageInput] = (),
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Return the complete answer. Takes the arguments of `generate`."""
        stream = self.generate(prompt, images=images, **options)
        async for _ in stream:
            pass
        return stream.final

    async def put_image(self, source: Path | str | bytes) -> str:
        """Upload an image and return its digest, which `images` takes.

        Args:
            source: path or bytes of the file.
        """
        return (await self._call(self._gateway.PutImage, wire.put_image_requests(source))).sha256.hex()

    async def count_tokens(
        self, prompt: str | Sequence[Message], *, images: Sequence[ImageInput] = (), system: str | None = None
    ) -> TokenCount:
        """Count the tokens of a prompt, without running it."""
        request = gateway_pb2.CountTokensRequest(messages=wire.messages(prompt, images, system))
        return wire.token_count(await self._call(self._gateway.CountTokens, request))

    async def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a text or a conversation.

        Args:
            prompt: a text by itself, or the turns of a conversation, which the chat template surrounds.
        """
        request = wire.tokenize_request(prompt)
        return list((await self._call(self._gateway.Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        request = gateway_pb2.DetokenizeRequest(token_ids=token_ids)
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
        return [wire.release_info(info) for info in response.releases]

    async def close(self) -> None:
        """Close the connection and cancel its running requests."""
        self._is_closed = True
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
