"""Ask questions without asyncio.

with Client("127.0.0.1:50050") as client:
    stream = client.generate("What is this?", images=["bag.png"], max_tokens=64)
    for text in stream:
        print(text, end="", flush=True)
    print(stream.final.usage)
"""

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

from chassis.channels import ChannelTls
from chassis.errors import TandemError
from tandem.client.call import AnswerStream, BlockingConnection, Closeable
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


class TextStream(AnswerStream, Closeable):
    """A streamed answer.

    Iterate to get pieces of text, then read `final`. Leaving the loop early cancels the request. So do `close` and the
    end of a `with` block.
    """

    def __iter__(self) -> Iterator[str]:
        try:
            for response in self._responses():
                if text := self._builder.add(response):
                    yield text
            self._builder.check_complete()
        finally:
            self.close()

    def _responses(self) -> Iterator[gateway_pb2.GatewayGenerateResponse]:
        """Yield the messages, also of a second call."""
        try:
            with self._envelope.translate_errors():
                yield from self._call
        except TandemError as error:
            call = self._again(error)
            if call is None:
                raise
            self._call = call
            with self._envelope.translate_errors():
                yield from call


class Client(BlockingConnection):
    """A blocking connection to a gateway. Thread-safe.

    Every call raises the errors of `tandem.errors`, each with its `request_id`. A call also raises `OSError` if the
    file of an image cannot be read.
    """

    def _open(self, tls: ChannelTls | None) -> None:
        super()._open(tls)
        self._gateway = gateway_pb2_grpc.GatewayStub(self._channel)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Images = (),
        **options: Unpack[GenerateOptions],
    ) -> TextStream:
        """Ask a question or continue a conversation.

        The request is sent at once, before the first iteration.

        Args:
            prompt: the question, or the turns of a conversation. The oldest turn is first, the user's turn last.
            images: images of the question, or one alone, placed before it. The turns of a conversation hold their own.
            options: see `GenerateOptions`.
        """
        return self.send(generate_request(prompt, images, options), **options)

    def send(self, request: gateway_pb2.GatewayGenerateRequest, **options: Unpack[GenerateOptions]) -> TextStream:
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

        return TextStream(call(request), envelope, again)

    def ask(
        self,
        prompt: str | Sequence[Message],
        *,
        images: Images = (),
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Return the complete answer. Takes the arguments of `generate`."""
        stream = self.generate(prompt, images=images, **options)
        for _ in stream:
            pass
        return stream.final

    def put_image(self, source: ImageInput) -> str:
        """Upload an image and return its digest, which `images` takes.

        The client keeps its last uploads (64 MiB). It sends one again to a gateway that does not know it.

        Args:
            source: path or bytes of the file, or a Pillow image.
        """
        image = read_source(source)
        sha256 = self._call(self._gateway.PutImage, put_image_requests(image)).sha256
        self._uploads.add(sha256, image)
        return sha256.hex()

    def count_tokens(
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
            return token_count(self._call(self._gateway.CountTokens, request))
        except TandemError as error:
            replaced = self._uploads.replaced(request, error, self.max_message_bytes)
            if replaced is None:
                raise
        return token_count(self._call(self._gateway.CountTokens, replaced))

    def tokenize(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a text or a conversation.

        Args:
            prompt: a text by itself, or the turns of a conversation, which the chat template surrounds.
        """
        request = tokenize_request(prompt)
        check_size(request, self.max_message_bytes)
        return list(self._call(self._gateway.Tokenize, request).token_ids)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        request = detokenize_request(token_ids)
        return self._call(self._gateway.Detokenize, request).text

    def rate(self, request_id: str, score: float, label: str = "") -> bool:
        """Rate a recent answer. Return whether it counts.

        Args:
            request_id: of a complete answer of the last hour.
            score: from -1 (bad) to 1 (good).
            label: a word for the gateway's log, without a user's text.
        """
        request = gateway_pb2.FeedbackRequest(request_id=request_id, score=score, label=label)
        return self._call(self._gateway.Feedback, request).counted

    def models(self) -> list[ReleaseInfo]:
        """Return the releases that the gateway serves."""
        response = self._call(self._gateway.ListModels, gateway_pb2.GatewayListModelsRequest())
        return [release_info(info) for info in response.releases]
