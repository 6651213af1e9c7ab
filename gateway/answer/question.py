"""Build a checked request's prompt and choose its replicas."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from chassis.errors import InvalidArgument
from gateway.admission import Tenant
from gateway.answer.checks import Conversation, ImageField, Limits, check_conversation, check_options
from gateway.answer.prefix import prefix_digest
from gateway.answer.signs import digest_of, script_of
from gateway.answer.token_shapes import token_shapes
from gateway.filters import FilterSet
from gateway.images import UNCOUNTED, Held, ImageStore, RequestImage, TokenShape
from gateway.stages import Release, Releases, Route
from processing import Segment, TextSegment
from tandem.v1 import gateway_pb2, language_pb2, sampling_pb2

T = TypeVar("T")
HasConversation = gateway_pb2.GatewayGenerateRequest | gateway_pb2.CountTokensRequest | gateway_pb2.TokenizeRequest

# Rendering and tokenizing this much takes about a millisecond. Larger prompts are built in a thread.
_BUILD_INLINE_CHARACTERS = 4096
_BUILD_INLINE_PARTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A checked request, ready to be sent to the stages."""

    route: Route
    segments: list[Segment]
    images: list[RequestImage]
    shapes: list[TokenShape]  # of each image's visual tokens
    num_prompt_tokens: int  # includes visual tokens
    sampling: sampling_pb2.SamplingOptions
    stops: Sequence[str]
    cache_salt: bytes  # the tenant's. Different salts share no cache entry
    shares_caches: bool = False  # whether others have the same salt
    priority: int = 0  # larger runs first
    script: str | None = None  # of the last message, see `script_of`
    digest: bytes = b""  # keyed, of the conversation

    @property
    def num_visual_tokens(self) -> int:
        """Number of visual tokens in the prompt."""
        return sum(shape.num_visual_tokens for shape in self.shapes)

    @property
    def wants_logprobs(self) -> bool:
        """Whether the client gets log-probabilities."""
        return self.sampling.HasField("num_logprobs")

    @property
    def whole_text(self) -> TextSegment | None:
        """The prompt, if it is one text."""
        if len(self.segments) == 1 and isinstance(self.segments[0], TextSegment):
            return self.segments[0]
        return None

    def start(self, *, measures_logprob: bool = False, is_background: bool = False) -> language_pb2.GenerateStart:
        """Return the options of the answer, for the language call.

        Args:
            measures_logprob: ask for the log-probability of each token, even if the client gets none.
            is_background: do not slow down others.
        """
        start = language_pb2.GenerateStart(
            tag=self.route.release.language_tag,
            sampling=self.sampling,
            cache_salt=self.cache_salt,
            priority=self.priority,
            is_background=is_background,
        )
        if measures_logprob and not self.wants_logprobs:
            start.sampling.num_logprobs = 0
        return start


class QuestionBuilder:
    """Checks requests and builds their prompts."""

    def __init__(self, releases: Releases, images: ImageStore, limits: Limits, filters: FilterSet) -> None:
        self._releases = releases
        self._images = images
        self._limits = limits
        self._filters = filters

    async def build(
        self,
        request: gateway_pb2.GatewayGenerateRequest,
        release: Release,
        tenant: Tenant,
        *,
        priority: int = 0,
        held: Held = UNCOUNTED,
    ) -> Question:
        """Check a request without a model, and build its prompt.

        Args:
            request: the client's request.
            release: the release that answers.
            tenant: owner of the request.
            priority: scheduling priority in the language service. Larger runs first.
            held: counts the bytes of images given by digest.

        Raises:
            ResourceExhausted: reason 'BYTES_BUSY'.
            InvalidArgument: the request is wrong. `field` names the field at fault.
            NotFound: reason 'IMAGE_NOT_FOUND'.
            Unavailable, FailedPrecondition: the release cannot answer.
        """
        check_options(request, self._limits)
        conversation, script = await in_thread_if_large(request, partial(self._check, request))
        images = await resolve_images(self._images, conversation, tenant, held)
        segments = await build_segments(release, conversation)
        digests = [image.sha256 for image in images]
        route = await self._releases.route(
            release,
            with_images=bool(images),
            prefix=prefix_digest(conversation.messages, digests, tenant.salt),
            image=digests[0] if digests else None,
        )
        shapes = await token_shapes(images, route)
        num_prompt_tokens = release.prompts.count_tokens(segments, [shape.num_visual_tokens for shape in shapes])
        self._check_prompt_length(num_prompt_tokens)
        _check_context(num_prompt_tokens, request.sampling.max_tokens, route)
        _check_num_images(conversation.images, route)
        return Question(
            route=route,
            segments=segments,
            images=images,
            shapes=shapes,
            num_prompt_tokens=num_prompt_tokens,
            sampling=self._resolved(request.sampling, route, num_prompt_tokens),
            stops=request.stop,
            cache_salt=tenant.salt,
            shares_caches=tenant.shares_caches,
            priority=priority,
            script=script,
            digest=digest_of(conversation.messages, digests),
        )

    def _check(self, request: gateway_pb2.GatewayGenerateRequest) -> tuple[Conversation, str | None]:
        """Return the checked conversation and the script of its question."""
        conversation = check_conversation(
            request.messages, self._limits, request.tools, continues_last=request.continue_answer
        )
        self._filters.check_text(conversation.messages)
        return conversation, script_of(conversation.messages)

    def _check_prompt_length(self, num_prompt_tokens: int) -> None:
        limit = self._limits.max_prompt_tokens
        if limit and num_prompt_tokens > limit:
            raise InvalidArgument(
                f"The prompt has {num_prompt_tokens} tokens: shorten it to the limit of {limit}.",
                reason="PROMPT_TOO_LONG",
                field="messages",
                metadata={"prompt_tokens": str(num_prompt_tokens), "max_prompt_tokens": str(limit)},
            )

    def _resolved(
        self, sampling: sampling_pb2.SamplingOptions, route: Route, num_prompt_tokens: int
    ) -> sampling_pb2.SamplingOptions:
        """Return the options with the release's and gateway's defaults."""
        resolved = route.release.default_sampling()
        resolved.MergeFrom(sampling)
        limit = self._limits.max_output_tokens
        if limit and not sampling.max_tokens:
            resolved.max_tokens = min(limit, route.language.info.language.context_length - num_prompt_tokens)
        return resolved


async def in_thread_if_large(request: HasConversation, work: Callable[[], T]) -> T:
    """Run work on a conversation without blocking the event loop."""
    return work() if _is_small(request) else await asyncio.to_thread(work)


def _is_small(request: HasConversation) -> bool:
    """Return whether a conversation can be checked at once."""
    if len(request.messages) > _BUILD_INLINE_PARTS or len(request.tools) > _BUILD_INLINE_PARTS:
        return False
    num_parts = sum(len(message.parts) + len(message.tool_calls) for message in request.messages)
    if num_parts > _BUILD_INLINE_PARTS:
        return False
    num_characters = sum(len(part.text) for message in request.messages for part in message.parts)
    num_characters += sum(len(call.arguments) for message in request.messages for call in message.tool_calls)
    num_characters += sum(len(tool.parameters) for tool in request.tools)
    return num_characters <= _BUILD_INLINE_CHARACTERS


async def build_segments(release: Release, conversation: Conversation) -> list[Segment]:
    """Build the prompt without blocking the event loop."""
    num_parts = sum(len(message["content"]) for message in conversation.messages)
    build = partial(
        release.prompts.build_segments,
        conversation.messages,
        conversation.tools,
        continues_last=conversation.continues_last,
    )
    is_small = conversation.num_characters <= _BUILD_INLINE_CHARACTERS and num_parts <= _BUILD_INLINE_PARTS
    if is_small and release.prompts.is_quick(*build.args, **build.keywords):
        return build()
    return await asyncio.to_thread(build)


async def resolve_images(
    store: ImageStore, conversation: Conversation, tenant: Tenant, held: Held
) -> list[RequestImage]:
    """Return the images of a conversation.

    Raises:
        InvalidArgument, NotFound: see `ImageStore.resolve`.
    """
    return [await store.resolve(image.image, image.field, tenant.salt, held) for image in conversation.images]


def _check_context(num_prompt_tokens: int, max_tokens: int, route: Route) -> None:
    """Check that prompt and answer fit the model's context."""
    context_length = route.language.info.language.context_length
    if num_prompt_tokens + max(max_tokens, 1) > context_length:
        answer = f" and an answer of {max_tokens}" if max_tokens else ""
        raise InvalidArgument(
            f"A prompt of {num_prompt_tokens} tokens{answer} is longer than the model's context of {context_length}: "
            "shorten the prompt or lower max_tokens.",
            reason="PROMPT_TOO_LONG",
            field="messages",
            metadata={"prompt_tokens": str(num_prompt_tokens), "context_length": str(context_length)},
        )


def _check_num_images(images: Sequence[ImageField], route: Route) -> None:
    max_images = route.language.info.language.max_images
    if len(images) > max_images:
        raise InvalidArgument(
            f"There are {len(images)} images: send at most {max_images}, the model's limit.",
            reason="TOO_MANY_IMAGES",
            field=images[max_images].field,
            metadata={"max_images": str(max_images)},
        )
