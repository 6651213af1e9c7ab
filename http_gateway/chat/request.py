"""Turn the JSON of a chat completion into requests of the gateway."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from chassis.errors import InvalidArgument
from http_gateway.chat.messages import build_messages
from http_gateway.chat.tools import ToolPlan, plan_tools
from http_gateway.door import Door, HttpSettings
from http_gateway.schemas.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat, TextFormat
from http_gateway.wire.json_text import encode
from tandem.v1 import gateway_pb2, sampling_pb2

# Options with the same name and meaning in both forms.
_SAME = (
    "min_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
)
_SEEDS = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """A checked chat completion."""

    request: gateway_pb2.GatewayGenerateRequest  # of the first choice
    model: str  # as the client named it
    release: str | None  # that `model` pins
    num_choices: int
    is_streamed: bool
    include_usage: bool
    tools: ToolPlan

    def requests(self, request_id: str) -> Iterator[tuple[str, gateway_pb2.GatewayGenerateRequest]]:
        """Yield id and request of each choice.

        All have the same routing key, so that one release answers. With a seed, each has the next one.
        """
        if self.num_choices == 1:
            yield request_id, self.request
            return
        for index in range(self.num_choices):
            request = gateway_pb2.GatewayGenerateRequest()
            request.CopyFrom(self.request)
            request.routing_key = request.routing_key or request_id
            if request.sampling.HasField("seed"):
                request.sampling.seed = (request.sampling.seed + index) % _SEEDS
            yield f"{request_id[:124]}-{index}", request


async def build_call(chat: ChatRequest, door: Door) -> ChatCall:
    """Check a chat completion, and build its request.

    Raises:
        InvalidArgument: fields do not fit together, or one is beyond this server's limits.
        TandemError: an image cannot be read.
    """
    _check(chat, door.settings)
    tools = plan_tools(chat.tools, chat.tool_choice, parallel=chat.parallel_tool_calls is not False)
    request = gateway_pb2.GatewayGenerateRequest(
        messages=await build_messages(chat.messages, door.images),
        tools=tools.tools,
        sampling=_sampling(chat, tools),
        stop=[chat.stop] if isinstance(chat.stop, str) else chat.stop or (),
        routing_key=chat.user or chat.prompt_cache_key or "",
        continue_answer=bool(chat.continue_final_message),
    )
    num_choices = chat.n or 1
    if num_choices > 1 and num_choices * request.ByteSize() > door.settings.max_body_bytes:
        raise _bad("The images are too large for that many answers: upload them, or lower n.", "n")
    return ChatCall(
        request=request,
        model=chat.model or door.settings.model_aliases[0],
        release=release_of(chat.model, door.settings),
        num_choices=num_choices,
        is_streamed=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
        tools=tools,
    )


def release_of(model: str | None, settings: HttpSettings) -> str | None:
    """Return the release that a model's name pins, if any.

    Raises:
        InvalidArgument: reason 'BAD_FIELD', no release has such a name.
    """
    if not model or model in settings.model_aliases:
        return None
    if not (model.isascii() and model.isprintable()):
        raise _bad("The model must be a tag or an alias, as /v1/models lists them.", "model")
    return model


def _check(chat: ChatRequest, settings: HttpSettings) -> None:
    """Check fields that depend on each other or on settings."""
    if chat.stream_options is not None and not chat.stream:
        raise _bad("Set stream_options only with stream.", "stream_options")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise _bad("Set top_logprobs only with logprobs.", "top_logprobs")
    if (chat.n or 1) > settings.max_choices:
        raise _bad(f"Set n to at most {settings.max_choices}, the limit of this server.", "n")


def _sampling(chat: ChatRequest, tools: ToolPlan) -> sampling_pb2.SamplingOptions:
    given: dict[str, Any] = {name: value for name in _SAME if (value := getattr(chat, name)) is not None}
    max_tokens = chat.max_completion_tokens or chat.max_tokens
    if max_tokens is not None:
        given["max_tokens"] = max_tokens
    if chat.top_k is not None:
        given["top_k"] = max(0, chat.top_k)
    if chat.seed is not None:
        given["seed"] = chat.seed % _SEEDS
    if chat.logprobs:
        given["num_logprobs"] = chat.top_logprobs or 0
    options = sampling_pb2.SamplingOptions(**given, stop_token_ids=chat.stop_token_ids or ())
    for token_id, bias in (chat.logit_bias or {}).items():
        options.logit_bias[int(token_id)] = bias
    _constrain(options, [*_constraints(chat), *([("grammar", tools.grammar)] if tools.grammar else [])])
    return options


def _constrain(options: sampling_pb2.SamplingOptions, constraints: Sequence[tuple[str, Any]]) -> None:
    if len(constraints) > 1:
        raise _bad(
            "Set only one of response_format, guided_json, guided_regex, guided_choice, and tools that must be called.",
            "response_format",
        )
    for name, value in constraints:
        if name == "choices":
            options.choices.texts.extend(value)
        else:
            setattr(options, name, value)


def _constraints(chat: ChatRequest) -> Iterator[tuple[str, Any]]:
    """Yield the answer's constraints, named as in the contract."""
    form = chat.response_format
    if isinstance(form, JsonSchemaFormat):
        yield "json_schema", _schema(form.json_schema.schema_, "response_format")
    elif isinstance(form, JsonObjectFormat):
        yield "json_schema", '{"type":"object"}'
    else:
        assert form is None or isinstance(form, TextFormat)
    if chat.guided_json is not None:
        yield "json_schema", _schema(chat.guided_json, "guided_json")
    if chat.guided_regex is not None:
        yield "regex", chat.guided_regex
    if chat.guided_choice is not None:
        yield "choices", chat.guided_choice


def _schema(schema: dict[str, Any] | str, field: str) -> str:
    """Return a JSON schema as the contract has it."""
    if isinstance(schema, str):
        return schema
    try:
        return encode(schema).decode()
    except ValueError:  # NaN, or a number of thousands of digits
        raise _bad("The JSON schema has a number that JSON does not have.", field) from None


def _bad(message: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_FIELD", field=field)
