"""The request of a chat completion.

The gateway and the language service check most limits. Here stand those that keep a value within its field of the
contract.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from http_gateway.schemas.base import TAG, RequestModel, ignored
from http_gateway.schemas.messages import Message
from http_gateway.schemas.tools import Tool, ToolChoice

_MAX_UINT32 = 2**32 - 1

TokenId = Annotated[int, Field(ge=0, le=_MAX_UINT32)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(RequestModel):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(None, description="Send the usage in a last chunk without choices.")
    include_obfuscation: Any = ignored("chunks have no padding")


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(RequestModel):
    """A JSON schema."""

    name: str = Field(max_length=64, description="Name of the schema, for the client.")
    schema_: dict[str, Any] = Field(alias="schema", description="The schema. The answer always fits it.")
    description: Any = ignored("the prompt says what the answer is for")
    strict: Any = ignored("every answer fits the schema")


class JsonSchemaFormat(RequestModel):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


def _kind_of_format(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TAG + kind if kind in ("text", "json_object", "json_schema") else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(f"{TAG}text")]
    | Annotated[JsonObjectFormat, Tag(f"{TAG}json_object")]
    | Annotated[JsonSchemaFormat, Tag(f"{TAG}json_schema")],
    Discriminator(
        _kind_of_format,
        custom_error_type="kind",
        custom_error_message="Its type must be text, json_object or json_schema",
    ),
]


def _kind_of_texts(value: Any) -> str:
    return TAG + ("list" if isinstance(value, list) else "string")


def _kind_of_schema(value: Any) -> str:
    return TAG + ("object" if isinstance(value, dict) else "string")


Stop = Annotated[
    Annotated[str, Tag(f"{TAG}string")] | Annotated[list[str], Tag(f"{TAG}list")], Discriminator(_kind_of_texts)
]
SchemaOrText = Annotated[
    Annotated[str, Tag(f"{TAG}string")] | Annotated[dict[str, Any], Tag(f"{TAG}object")], Discriminator(_kind_of_schema)
]


class ChatRequest(RequestModel):
    """A conversation to answer. Null counts as absent."""

    model: str | None = Field(
        None,
        max_length=256,
        description="Tag of the release that answers, or an alias such as 'default', which leaves the choice to the "
        "gateway. The header x-tandem-release takes precedence.",
    )
    messages: list[Message] = Field(description="The turns, oldest first. The last one is the user's or a tool's.")

    max_tokens: int | None = Field(None, ge=1, le=_MAX_UINT32, description="Most tokens of the answer.")
    max_completion_tokens: int | None = Field(None, ge=1, le=_MAX_UINT32, description="The same. It takes precedence.")
    min_tokens: int | None = Field(None, ge=0, le=_MAX_UINT32, description="Fewest tokens of the answer.")
    temperature: float | None = Field(
        None, ge=0, le=100, description="0 is greedy decoding. Default: the release's, else 0."
    )
    top_p: float | None = Field(None, ge=0, le=1, description="Probability of the tokens that are kept.")
    top_k: int | None = Field(None, ge=-1, le=_MAX_UINT32, description="Number of tokens that are kept. -1 and 0: all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Least probability, relative to the likeliest token.")
    repetition_penalty: float | None = Field(None, gt=0, le=1000, description="Divides logits of tokens seen before.")
    presence_penalty: Penalty | None = Field(None, description="Subtracted once from tokens of the answer.")
    frequency_penalty: Penalty | None = Field(None, description="Subtracted for each time that a token came.")
    logit_bias: dict[TokenKey, float] | None = Field(
        None, max_length=1024, description="Added to logits, by token id, -100 to 100."
    )
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1, description="The same seed gives the same text.")
    stop: Stop | None = Field(None, description="The answer ends before the first of these, at most 16.")
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64, description="Token ids that end the answer.")
    ignore_eos: bool | None = Field(None, description="Do not end at the model's end-of-sequence token.")

    n: int | None = Field(None, ge=1, le=128, description="Number of answers. With a seed, each has the next one.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Report those of this many likeliest tokens, too. Only with logprobs."
    )

    response_format: ResponseFormat | None = Field(None, description="Form of the answer.")
    guided_regex: str | None = Field(None, description="Regular expression that the whole answer matches.")
    guided_choice: list[str] | None = Field(None, description="Texts of which the answer is one.")
    guided_json: SchemaOrText | None = Field(None, description="JSON schema that the answer fits.")

    tools: list[Tool] | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="Whether it must call one, and which.")
    parallel_tool_calls: bool | None = Field(None, description="Whether one answer may have several calls.")

    continue_final_message: bool | None = Field(
        None, description="The last message is the assistant's, and the answer continues it."
    )

    user: str | None = Field(
        None,
        description="Routing key, at most 256 characters: requests with the same key stay on one release while a "
        "rollout changes its weights.",
    )
    prompt_cache_key: str | None = Field(None, description="The same, where user is absent.")
    modalities: list[Literal["text"]] | None = Field(None, description="Only text.")

    store: Any = ignored("nothing is stored")
    metadata: Any = ignored("nothing is stored")
    service_tier: Any = ignored("the API key decides the priority")
    safety_identifier: Any = ignored("the API key identifies the tenant")
    prompt_cache_retention: Any = ignored("caches evict by use")
    prediction: Any = ignored("drafts come from the prompt")
    reasoning_effort: Any = ignored("the models do not reason before they answer")
    verbosity: Any = ignored("say it in the prompt")
    add_generation_prompt: Any = ignored("continue_final_message decides it")
