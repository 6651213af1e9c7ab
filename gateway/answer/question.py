"""A request made ready: checked, routed to a release, and turned into the segments of a prompt."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from chassis.errors import InvalidArgument
from gateway.admission import Tenant
from gateway.answer.checks import Conversation, ImageField, Limits, check_conversation, check_options
from gateway.filters import Filters
from gateway.images import ImageStore, RequestImage
from gateway.stages import Release, Releases, Route
from processing import Segment
from tandem.v1 import gateway_pb2, language_pb2, sampling_pb2

# So much text in so few parts is rendered and tokenized in about a millisecond; more is done beside the event loop.
_BUILD_INLINE_CHARACTERS = 4096
_BUILD_INLINE_PARTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that answering one request takes."""

    route: Route
    segments: list[Segment]
    images: list[RequestImage]
    num_prompt_tokens: int  # visual tokens among them
    sampling: sampling_pb2.SamplingOptions
    stops: Sequence[str]
    cache_salt: bytes  # the tenant's: what is cached is shared by equal ones only
    priority: int = 0  # larger runs first

    @property
    def num_visual_tokens(self) -> int:
        """Positions of the prompt that images take."""
        return len(self.images) * self.route.release.prompts.num_visual_tokens

    def start(self) -> language_pb2.GenerateRequest:
        """Return the first message of the language call."""
        start = language_pb2.GenerateStart(
            tag=self.route.release.language_tag,
            sampling=self.sampling,
            cache_salt=self.cache_salt,
            priority=self.priority,
        )
        return language_pb2.GenerateRequest(start=start)


class QuestionMaker:
    """Steps 1 to 3: from what a client sent to what the stages take."""

    def __init__(self, releases: Releases, images: ImageStore, limits: Limits, filters: Filters) -> None:
        self._releases = releases
        self._images = images
        self._limits = limits
        self._filters = filters

    async def make(self, request: gateway_pb2.GatewayGenerateRequest, release: Release, tenant: Tenant) -> Question:
        """Make a question of a request, with everything checked that needs no model.

        Args:
            request: as it came.
            release: the one that answers it.
            tenant: who asks.

        Raises:
            InvalidArgument: something in the request is wrong; `field` says what.
            NotFound: reason 'IMAGE_NOT_FOUND'.
            Unavailable, FailedPrecondition: the release cannot answer.
        """
        check_options(request, self._limits)
        conversation = check_conversation(request.messages, self._limits)
        self._filters.check_text(conversation.messages)
        images = [await self._images.take(image.image, image.path, tenant.salt) for image in conversation.images]
        segments = await build_segments(release, conversation)
        num_prompt_tokens = release.prompts.count(segments)
        route = await self._releases.route(release, with_images=bool(images))
        sampling = self._bounded(request.sampling, route, num_prompt_tokens)
        _check_images(conversation.images, route)
        return Question(
            route=route,
            segments=segments,
            images=images,
            num_prompt_tokens=num_prompt_tokens,
            sampling=sampling,
            stops=request.stop,
            cache_salt=tenant.salt,
        )

    async def count(self, messages: Sequence[gateway_pb2.Message], release: Release) -> gateway_pb2.CountTokensResponse:
        """Count what a conversation takes of the context.

        Raises:
            InvalidArgument, NotFound, Unavailable, FailedPrecondition: as `make`.
        """
        conversation = check_conversation(messages, self._limits)
        num_prompt_tokens = release.prompts.count(await build_segments(release, conversation))
        route = await self._releases.route(release, with_images=False)
        return gateway_pb2.CountTokensResponse(
            prompt_tokens=num_prompt_tokens,
            visual_tokens=len(conversation.images) * release.prompts.num_visual_tokens,
            remaining_tokens=max(0, route.language.info.language.context_length - num_prompt_tokens),
        )

    def _bounded(
        self, sampling: sampling_pb2.SamplingOptions, route: Route, num_prompt_tokens: int
    ) -> sampling_pb2.SamplingOptions:
        """Check that prompt and answer have room; return `sampling` with the answer's longest length filled in."""
        limit = self._limits.max_prompt_tokens
        if limit and num_prompt_tokens > limit:
            raise InvalidArgument(
                f"A prompt of {num_prompt_tokens} tokens is longer than the {limit} taken here.",
                reason="PROMPT_TOO_LONG",
                field="messages",
                metadata={"prompt_tokens": str(num_prompt_tokens), "max_prompt_tokens": str(limit)},
            )
        _check_fits(num_prompt_tokens, sampling.max_tokens, route)
        longest = self._limits.max_output_tokens
        if sampling.max_tokens or not longest:
            return sampling
        bounded = sampling_pb2.SamplingOptions()
        bounded.CopyFrom(sampling)
        bounded.max_tokens = min(longest, route.language.info.language.context_length - num_prompt_tokens)
        return bounded


async def build_segments(release: Release, conversation: Conversation) -> list[Segment]:
    """Build the prompt without holding up other requests."""
    num_parts = sum(len(message["content"]) for message in conversation.messages)
    if conversation.num_characters <= _BUILD_INLINE_CHARACTERS and num_parts <= _BUILD_INLINE_PARTS:
        return release.prompts.build(conversation.messages)
    return await asyncio.to_thread(release.prompts.build, conversation.messages)


def _check_fits(num_prompt_tokens: int, max_tokens: int, route: Route) -> None:
    """Check that the prompt leaves room for the answer, before images are encoded for nothing."""
    context_length = route.language.info.language.context_length
    if num_prompt_tokens + max(max_tokens, 1) > context_length:
        answer = f" and an answer of {max_tokens}" if max_tokens else ""
        raise InvalidArgument(
            f"A prompt of {num_prompt_tokens} tokens{answer} is longer than the model's context of {context_length}.",
            reason="PROMPT_TOO_LONG",
            field="messages",
            metadata={"prompt_tokens": str(num_prompt_tokens), "context_length": str(context_length)},
        )


def _check_images(images: Sequence[ImageField], route: Route) -> None:
    max_images = route.language.info.language.max_images
    if len(images) > max_images:
        raise InvalidArgument(
            f"There are {len(images)} images; the model takes {max_images}.",
            reason="TOO_MANY_IMAGES",
            field=images[max_images].path,
            metadata={"max_images": str(max_images)},
        )
