"""Count, return and decode tokens, without an answer."""

import asyncio
from collections.abc import Sequence
from functools import partial

from chassis.errors import InvalidArgument
from gateway.admission import Tenant
from gateway.answer.checks import Conversation, Limits, check_conversation
from gateway.answer.question import build_segments, in_thread_if_large, resolve_images
from gateway.answer.token_shapes import token_shapes
from gateway.images import Held, ImageStore
from gateway.stages import Release, Releases, Route
from processing import Detokenizer, Segment, TextSegment
from tandem.v1 import gateway_pb2

# Fixed by the contract.
MAX_TOKENS = 262144

# This much takes about a millisecond. More is done in a thread.
_INLINE_CHARACTERS = 4096
_INLINE_TOKENS = 1024


class Tokenization:
    """Turns texts and conversations into tokens, and back."""

    def __init__(self, releases: Releases, images: ImageStore, limits: Limits) -> None:
        self._releases = releases
        self._images = images
        self._limits = limits

    async def count(
        self, request: gateway_pb2.CountTokensRequest, release: Release, tenant: Tenant, held: Held
    ) -> gateway_pb2.CountTokensResponse:
        """Count the tokens of a conversation.

        Raises:
            InvalidArgument, NotFound, Unavailable, FailedPrecondition: see `QuestionBuilder.build`.
        """
        check = partial(
            check_conversation,
            request.messages,
            self._limits,
            request.tools,
            continues_last=request.continue_answer,
        )
        conversation = await in_thread_if_large(request, check)
        segments, counts, route = await self._prompt(conversation, release, tenant, held)
        num_prompt_tokens = release.prompts.count_tokens(segments, counts)
        return gateway_pb2.CountTokensResponse(
            prompt_tokens=num_prompt_tokens,
            visual_tokens=sum(counts),
            remaining_tokens=max(0, route.language.info.language.context_length - num_prompt_tokens),
        )

    async def tokenize(
        self, request: gateway_pb2.TokenizeRequest, release: Release, tenant: Tenant, held: Held
    ) -> gateway_pb2.TokenizeResponse:
        """Return the tokens of a text or a conversation.

        Raises:
            InvalidArgument: reason 'TEXT_TOO_LONG', or 'TEXT_AND_MESSAGES' if both are given. Others as
                `QuestionBuilder.build`.
            NotFound, Unavailable, FailedPrecondition: see there.
        """
        if not request.messages:
            token_ids = await self._encode(request.text, release)
            return gateway_pb2.TokenizeResponse(
                token_ids=token_ids, context_length=release.config.language.context_length
            )
        if request.text:
            raise InvalidArgument("Give a text or messages, not both.", reason="TEXT_AND_MESSAGES", field="text")
        check = partial(check_conversation, request.messages, self._limits, request.tools)
        conversation = await in_thread_if_large(request, check)
        segments, counts, _ = await self._prompt(conversation, release, tenant, held)
        ids: list[int] = []
        for segment in segments:
            if isinstance(segment, TextSegment):
                ids += segment.token_ids
            else:
                ids += [release.prompts.image_id] * counts[segment.index]
        return gateway_pb2.TokenizeResponse(token_ids=ids, context_length=release.config.language.context_length)

    async def detokenize(
        self, request: gateway_pb2.DetokenizeRequest, release: Release
    ) -> gateway_pb2.DetokenizeResponse:
        """Return the text of tokens, and the bytes of each.

        Raises:
            InvalidArgument: reason 'TOO_MANY_TOKENS' or 'BAD_TOKEN'.
        """
        token_ids = request.token_ids
        if len(token_ids) > MAX_TOKENS:
            raise InvalidArgument(
                f"There are {len(token_ids)} tokens: send at most {MAX_TOKENS}.",
                reason="TOO_MANY_TOKENS",
                field="token_ids",
            )
        if len(token_ids) <= _INLINE_TOKENS:
            return _decode(token_ids, release)
        return await asyncio.to_thread(_decode, token_ids, release)

    async def _prompt(
        self, conversation: Conversation, release: Release, tenant: Tenant, held: Held
    ) -> tuple[list[Segment], list[int], Route]:
        """Return a prompt, visual tokens by image, and a route."""
        segments = await build_segments(release, conversation)
        fixed = release.config.num_visual_tokens
        # Images are looked at, and a vision replica is needed, only if their sizes matter.
        images = await resolve_images(self._images, conversation, tenant, held) if fixed is None else []
        route = await self._releases.route(release, with_images=bool(images))
        if fixed is not None:
            return segments, [fixed] * len(conversation.images), route
        return segments, [shape.num_visual_tokens for shape in await token_shapes(images, route)], route

    async def _encode(self, text: str, release: Release) -> list[int]:
        limit = self._limits.max_text_characters
        if len(text) > limit:
            raise InvalidArgument(
                f"Shorten the text to at most {limit} characters.",
                reason="TEXT_TOO_LONG",
                field="text",
                metadata={"max_text_characters": str(limit)},
            )
        if len(text) <= _INLINE_CHARACTERS:
            return release.prompts.encode_text(text)
        return await asyncio.to_thread(release.prompts.encode_text, text)


def _decode(token_ids: Sequence[int], release: Release) -> gateway_pb2.DetokenizeResponse:
    size = release.config.language.vocab_size
    for index, token_id in enumerate(token_ids):
        if token_id >= size:
            raise InvalidArgument(
                f"A token id must be below {size}, the size of the vocabulary.",
                reason="BAD_TOKEN",
                field=f"token_ids[{index}]",
            )
    detokenizer = Detokenizer(release.vocabulary)
    text = "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()
    token_bytes = map(release.vocabulary.bytes_of, token_ids)
    return gateway_pb2.DetokenizeResponse(text=text, token_bytes=token_bytes)
