"""The client without asyncio.

with Client("127.0.0.1:50050") as client:
    stream = client.generate("What is this?", images=["bag.png"], max_tokens=64)
    for text in stream:
        print(text, end="", flush=True)
    print(stream.final.usage)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from chassis.channels import ChannelTls
from tandem.client import wire
from tandem.client.call import AnswerStream, BlockingConnection, ClosedByWith
from tandem.client.types import Answer, GenerateOptions, ImageInput, Message, ReleaseInfo, TokenCount
from tandem.v1 import gateway_pb2, gateway_pb2_grpc


class TextStream(AnswerStream, ClosedByWith):
    """An answer as it is produced: iterate over it for pieces of text, then read `final`.

    Leaving the loop early, `close` and the end of a `with` block cancel the request.
    """

    def __iter__(self) -> Iterator[str]:
        try:
            with self._envelope.translated():
                for response in self._call:
                    if text := self._builder.add(response):
                        yield text
            self._builder.check_complete()
        finally:
            self.close()


class Client(BlockingConnection):
    """A connection to a gateway; thread-safe.

    Every call raises the errors of `tandem.errors`, each with its `request_id`, and `OSError` where an image's file
    cannot be read.
    """

    def _open(self, tls: ChannelTls | None) -> None:
        super()._open(tls)
        self._gateway = gateway_pb2_grpc.GatewayStub(self._channel)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Sequence[ImageInput] = (),
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """Ask a question, or continue a conversation whose last turn is the user's; the request is sent at once.

        Args:
            prompt: the question, or the turns of a conversation, oldest first.
            images: images of the question, which stand before it; a conversation holds its own.
            options: see `GenerateOptions`.
        """
        return self.send(wire.generate_request(prompt, images, options), **options)

    def send(self, request: gateway_pb2.GatewayGenerateRequest, **options: Unpack[GenerateOptions]) -> TextStream:
        """Send a request as the contract writes it; of the options only release, request_id and timeout_s count."""
        envelope = self._envelope(options)
        call = self._gateway.Generate(request, metadata=envelope.metadata, timeout=envelope.timeout_s)
        return TextStream(call, envelope)

    def ask(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Sequence[ImageInput] = (),
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Return the complete answer; takes what `generate` takes."""
        stream = self.generate(prompt, images=images, **options)
        for _ in stream:
            pass
        return stream.final

    def put_image(self, source: Path | str | bytes) -> str:
        """Give the gateway an image, a file's path or its bytes; return the digest that names it in `images`."""
        return self._call(self._gateway.PutImage, wire.put_image_requests(source)).sha256.hex()

    def count_tokens(
        self, prompt: str | Sequence[Message], *, images: Sequence[ImageInput] = (), system: str | None = None
    ) -> TokenCount:
        """Return what a prompt would take of the context, without running it."""
        request = gateway_pb2.CountTokensRequest(messages=wire.messages(prompt, images, system))
        return wire.token_count(self._call(self._gateway.CountTokens, request))

    def models(self) -> list[ReleaseInfo]:
        """Return the releases the gateway can answer with."""
        response = self._call(self._gateway.ListModels, gateway_pb2.GatewayListModelsRequest())
        return [wire.release_info(info) for info in response.releases]
