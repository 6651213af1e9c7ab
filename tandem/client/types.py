"""Arguments and results of the clients, as plain frozen dataclasses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

Role = Literal["system", "user", "assistant"]


class DecodedImage(Protocol):
    """A Pillow image, or a NumPy array for `Processor`."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Where its pixels are."""
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a conversation."""

    # Path of a file, its bytes, a Pillow image, or the digest from `put_image` (64 hex digits). Clients send a Pillow
    # image as PNG. `Processor` also takes a NumPy array.
    source: Path | str | bytes | bytearray | memoryview | DecodedImage


ImageInput: TypeAlias = Image | Path | str | bytes | bytearray | memoryview | DecodedImage
"""Type of the items of `images=`: an `Image` or its source."""

Images: TypeAlias = Sequence[ImageInput] | ImageInput
"""Type of `images=`: a sequence of images, or one alone."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, see `user`, `assistant`, `system`."""

    role: Role
    parts: tuple[str | Image, ...]  # text and images in order


def user(*parts: str | Image) -> Message:
    """Return a user's turn, such as `user(Image("bag.png"), "What is this?")`."""
    return Message("user", parts)


def assistant(text: str) -> Message:
    """Return a turn of the model."""
    return Message("assistant", (text,))


def system(text: str) -> Message:
    """Return the instructions, the first turn of a conversation."""
    return Message("system", (text,))


class GenerateOptions(TypedDict, total=False):
    """Options of `generate` and `ask`.

    A missing option means the service's default.
    """

    max_tokens: int  # maximum tokens of the answer
    min_tokens: int  # tokens before the answer may end
    temperature: float  # 0 is greedy decoding
    top_k: int  # keep the k most likely tokens, 0 keeps all
    top_p: float  # keep the fewest tokens that reach this probability together
    min_p: float  # drop tokens less likely than this times the most likely one
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]  # by token id
    seed: int  # the same seed gives the same text
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    num_logprobs: int  # report log-probabilities of the chosen token and of this many others
    json_schema: str | Mapping[str, Any]  # the answer is JSON that fits this schema
    regex: str  # the answer as a whole matches this expression
    choices: Sequence[str] | str  # the answer is one of these texts
    grammar: str  # the answer fits this Lark grammar. Use only one of the four constraints.
    stop: str | Sequence[str]  # the answer ends before the first of these
    continue_answer: bool  # continue the last turn, which is the model's, instead of answering a user's
    system: str  # instructions before a question. A conversation has a turn for them.
    routing_key: str  # requests with the same key stay on one release
    release: str  # tag of the release that answers
    request_id: str  # 1 to 128 letters, digits, ".", "_" and "-". Generated if missing.
    timeout_s: float  # seconds, overrides the client's


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int  # visual tokens included
    visual_tokens: int
    cached_prompt_tokens: int  # prompt tokens found in the decoder's cache
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Time of one request by stage, milliseconds."""

    prepare_ms: float  # checks, chat template, tokenizer
    vision_ms: float  # until the visual tokens of the last image were ready
    queue_ms: float  # waiting for the decoder's first step
    prefill_ms: float
    first_token_ms: float  # from the request to the first token
    decode_ms: float  # from the first token to the last
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The pair of checkpoints that answers a request."""

    vision_tag: str
    language_tag: str

    def __str__(self) -> str:
        if self.vision_tag == self.language_tag:
            return self.language_tag
        return f"{self.vision_tag},{self.language_tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """How the visual tokens of one image were obtained."""

    sha256: str  # 64 hex digits
    # 'miss': encoded for this request. 'gateway', 'shared' or 'vision': cache hit there. 'in_flight': already being
    # encoded for another request. 'similar': the visual tokens of a similar image were used.
    cache_level: str
    num_visual_tokens: int
    ready_ms: float  # from the request until the visual tokens were ready
    similar_sha256: str = ""  # of the similar image, 64 hex digits. Empty without one.
    similarity: float = 0.0  # of both images, up to 1. 0 without a similar image.
    grid: tuple[int, int] | None = None  # rows and columns of the visual tokens, if the model gives them a grid

    @property
    def cached(self) -> bool:
        """Whether the image did not have to be encoded."""
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
    top: tuple[TokenLogprob, ...]  # most likely first


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
    logprobs: tuple[PositionLogprobs, ...] = ()  # one entry per token if `num_logprobs` was given


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """Token counts of a prompt."""

    prompt_tokens: int  # visual tokens included
    visual_tokens: int
    remaining_tokens: int  # left for the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """One half of a release as its service runs it."""

    tag: str
    state: str  # 'loading', 'ready', 'draining', 'failed', or 'unspecified' if the service cannot be reached
    backend: str
    device: str
    precision: str
    num_parameters: int
    num_weight_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """The options of requests that leave them out.

    None means the service's own default: greedy decoding among all tokens, without a penalty.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseInfo:
    """A release that the gateway serves."""

    release: Release
    ready: bool
    is_default: bool  # answers requests that name no release
    vision: Half
    language: Half
    image_size: int  # side of the model's square input, pixels. 0 if it takes images of any size.
    num_visual_tokens: int  # of one image. 0 if they depend on its size.
    max_images: int  # in one prompt
    context_length: int  # maximum tokens of prompt and answer together
    max_visual_tokens: int = 0  # of one image. 0 if the vision service cannot be reached.
    kind: str = ""  # family and variant of the model: 'resampler', 'direct' or 'qwen3_vl'
    default_sampling: SamplingDefaults = SamplingDefaults()
