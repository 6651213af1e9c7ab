"""What users of the clients hand in and get back: plain frozen dataclasses, no protocol buffers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a conversation."""

    source: Path | str | bytes  # a file's path, the file's bytes, or the digest (64 hex digits) that `put_image` gave


ImageInput: TypeAlias = Image | Path | str | bytes
"""What `images=` takes: an `Image` or its source."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `user`, `assistant` and `system` write it shortest."""

    role: Role
    parts: tuple[str | Image, ...]  # text and images in order


def user(*parts: str | Image) -> Message:
    """Return a user's turn: `user(Image("bag.png"), "What is this?")`."""
    return Message("user", parts)


def assistant(text: str) -> Message:
    """Return a turn the model took."""
    return Message("assistant", (text,))


def system(text: str) -> Message:
    """Return the operator's instructions, the first turn."""
    return Message("system", (text,))


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` and `ask`; one left out takes the service's default."""

    max_tokens: int  # most tokens of the answer
    min_tokens: int  # fewest tokens before it may end
    temperature: float  # 0 is greedy decoding
    top_k: int  # keep the k most likely tokens; 0 keeps all
    top_p: float  # keep the smallest set of tokens that reaches this probability
    min_p: float  # drop tokens less likely than this times the likeliest
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]  # by token id
    seed: int  # the same seed gives the same text
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    num_logprobs: int  # report the chosen token's log-probability and those of this many others
    json_schema: str | Mapping[str, Any]  # the answer is JSON that fits this schema
    regex: str  # the answer as a whole matches this expression
    choices: Sequence[str]  # the answer is one of these texts; only one of the three constraints at a time
    stop: str | Sequence[str]  # the answer ends before the first of these
    system: str  # instructions put before a question; not together with messages
    routing_key: str  # requests with the same key stay on one release
    release: str  # a tag; pins the release that answers
    request_id: str  # 1 to 128 letters, digits, ".", "_" and "-"; made where absent
    timeout_s: float  # instead of the client's


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens one request took."""

    prompt_tokens: int  # visual tokens among them
    visual_tokens: int
    cached_prompt_tokens: int  # of the prompt, already in the decoder's cache
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one request went, milliseconds."""

    prepare_ms: float  # checks, chat template, tokenizer
    vision_ms: float  # until the last image's visual tokens were at hand
    queue_ms: float  # waiting for the decoder's first step
    prefill_ms: float
    first_token_ms: float  # from the request to the first token
    decode_ms: float  # from the first token to the last
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The pair of checkpoints that answers."""

    vision_tag: str
    language_tag: str

    def __str__(self) -> str:
        if self.vision_tag == self.language_tag:
            return self.language_tag
        return f"{self.vision_tag},{self.language_tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """What became of one image."""

    sha256: str  # 64 hex digits
    # 'miss': encoded for this request; 'gateway', 'shared' or 'vision': the cache that had it; 'in_flight': encoded for
    # another request at that time; 'similar': answered with another image's visual tokens
    cache_level: str
    num_visual_tokens: int
    ready_ms: float  # from the request to the visual tokens at hand
    similar_sha256: str = ""  # of that other image, 64 hex digits; empty where there is none
    similarity: float = 0.0  # of the two, up to 1; 0 where there is none

    @property
    def cached(self) -> bool:
        """Whether it did not have to be encoded."""
        return self.cache_level != "miss"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural logarithm of one token's probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLogprobs:
    """Log-probabilities at one position of the answer."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]  # likeliest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete answer."""

    text: str
    finish_reason: Literal["stop", "length", "filtered"]
    usage: Usage
    timings: Timings
    release: Release
    images: tuple[ImageReport, ...]  # in the order of the conversation
    request_id: str
    logprobs: tuple[PositionLogprobs, ...] = ()  # one entry a token where `num_logprobs` was given


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """What a conversation would take of the context."""

    prompt_tokens: int  # visual tokens among them
    visual_tokens: int
    remaining_tokens: int  # left for the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """One half of a release as its service runs it."""

    tag: str
    state: str  # 'loading', 'ready', 'draining', 'failed'; 'unspecified' where the service cannot be reached
    backend: str
    device: str
    precision: str
    num_parameters: int
    num_weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseInfo:
    """A release the gateway can answer with."""

    release: Release
    ready: bool
    is_default: bool  # requests without a pin go to it
    vision: Half
    language: Half
    image_size: int  # side of the square image the model sees, pixels
    num_visual_tokens: int  # of one image
    max_images: int  # in one prompt
    context_length: int  # most tokens of prompt and answer together
