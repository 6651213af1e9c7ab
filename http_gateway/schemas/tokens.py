"""Tokenize and detokenize, with the fields of vLLM."""

from typing import Annotated, Any, Literal

from pydantic import Field

from http_gateway.schemas.base import RequestModel, ResponseModel, ignored
from http_gateway.schemas.messages import Message
from http_gateway.schemas.tools import Tool

MAX_TOKENS = 262144  # of the contract


class TokenizeRequest(RequestModel):
    """A text or a conversation."""

    model: str | None = Field(None, max_length=256, description="As for chat completions.")
    prompt: str | None = Field(None, description="A text by itself. It never becomes a special token.")
    messages: list[Message] | None = Field(None, description="The turns, which the chat template surrounds.")
    tools: list[Tool] | None = Field(None, description="Only with messages.")
    return_token_strs: bool | None = Field(None, description="Return the text of each token, too.")
    add_generation_prompt: Literal[True] | None = Field(
        None, description="A prompt always ends where the answer begins."
    )
    add_special_tokens: Any = ignored("a text by itself has no special tokens")


class TokenizeResponse(ResponseModel):
    """The tokens of a text or a conversation."""

    count: int
    max_model_len: int = Field(description="Most tokens of prompt and answer together.")
    tokens: list[int]
    token_strs: list[str] | None = Field(description="Text of each token, empty for special ones. Null unless asked.")


class DetokenizeRequest(RequestModel):
    """Token ids."""

    model: str | None = Field(None, max_length=256, description="As for chat completions.")
    tokens: list[Annotated[int, Field(ge=0, le=2**32 - 1)]] = Field(max_length=MAX_TOKENS)


class DetokenizeResponse(ResponseModel):
    """The text of token ids."""

    prompt: str
