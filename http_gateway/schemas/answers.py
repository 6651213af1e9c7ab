"""The answer of a chat completion, whole and in chunks."""

from typing import Literal

from pydantic import Field

from http_gateway.schemas.base import ResponseModel

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]


class PromptDetails(ResponseModel):
    """Kinds of prompt tokens."""

    cached_tokens: int = Field(description="Tokens whose keys and values were in the cache.")
    image_tokens: int = Field(description="Visual tokens.")


class Usage(ResponseModel):
    """Number of tokens."""

    prompt_tokens: int = Field(description="Tokens of the prompt with its images, counted once for all choices.")
    completion_tokens: int = Field(description="Tokens of all choices.")
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(ResponseModel):
    """Log-probability of one token."""

    token: str = Field(description="Its text. Bytes that are no UTF-8 become U+FFFD.")
    logprob: float
    bytes: list[int] = Field(description="Its bytes.")


class TokenLogprob(TopLogprob):
    """Log-probability of a token of the answer."""

    top_logprobs: list[TopLogprob] = Field(description="The likeliest tokens at its place.")


class Logprobs(ResponseModel):
    """Log-probabilities of an answer or a chunk."""

    content: list[TokenLogprob]
    refusal: None = None


class ImageReport(ResponseModel):
    """Report on one image."""

    sha256: str
    cache_level: Literal["miss", "gateway", "shared", "vision", "in_flight", "similar"]
    num_visual_tokens: int
    ready_ms: float = Field(description="From the request until its visual tokens were ready.")


class Timings(ResponseModel):
    """Time in each stage, milliseconds."""

    prepare: float
    vision: float
    queue: float
    prefill: float
    first_token: float
    decode: float
    total: float


class Report(ResponseModel):
    """Tandem's report on the choice that ended last."""

    request_id: str
    release: str = Field(description="The tag that answered, or 'vision tag,language tag'.")
    timings_ms: Timings
    images: list[ImageReport] = Field(description="In the order of the conversation.")
    cached_prompt_tokens: int


class CalledFunction(ResponseModel):
    """Function of a call."""

    name: str
    arguments: str = Field(description="A JSON object, as text.")


class AnswerToolCall(ResponseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(ResponseModel):
    """The text of an answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[AnswerToolCall] | None = Field(None, description="Absent without calls.")


class Choice(ResponseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(ResponseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The model that was asked for. tandem.release is the one that answered.")
    choices: list[Choice]
    usage: Usage
    tandem: Report


class FunctionDelta(ResponseModel):
    """The next piece of a call's function."""

    name: str | None = Field(None, description="In the first piece of a call.")
    arguments: str = Field(description="To append.")


class ToolCallDelta(ResponseModel):
    """The next piece of a call."""

    index: int
    id: str | None = Field(None, description="In the first piece of a call.")
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(ResponseModel):
    """The next piece of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(ResponseModel):
    """The next piece of one choice."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(ResponseModel):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice] = Field(description="Empty in the chunk with the usage.")
    usage: Usage | None = Field(None, description="Present with include_usage, and null before the last chunk.")
    tandem: Report | None = Field(None, description="In the last chunk.")
