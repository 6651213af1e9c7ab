"""Tokens of texts and conversations, over a real channel."""

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from checkpoint.tokenizer import byte_tokenizer
from tandem.v1 import gateway_pb2
from tests.gateway.halves import NUM_VISUAL_TOKENS
from tests.gateway.scripted import World, ask, error_of

TOKENIZER: Tokenizer = byte_tokenizer()


async def tokenize(world: World, **request: Any) -> list[int]:
    response = await world.stub.Tokenize(gateway_pb2.TokenizeRequest(**request))
    assert response.context_length == 1024
    return list(response.token_ids)


async def test_a_text_has_tokens_which_have_the_text(world: World) -> None:
    for text in ("What is 这?\n", "", "<|im_start|>", "x" * 10_000):
        token_ids = await tokenize(world, text=text)
        assert len(token_ids) == len(text.encode())  # this tokenizer has a token for each byte
        response = await world.stub.Detokenize(gateway_pb2.DetokenizeRequest(token_ids=token_ids))
        assert (response.text, b"".join(response.token_bytes)) == (text, text.encode())


async def test_a_conversation_has_as_many_tokens_as_are_counted(
    world: World, make_image: Callable[[int], bytes]
) -> None:
    messages = ask("Look: ", make_image(1), "What is it?").messages
    token_ids = await tokenize(world, messages=messages)
    counted = await world.stub.CountTokens(gateway_pb2.CountTokensRequest(messages=messages))
    assert len(token_ids) == counted.prompt_tokens
    image_id = TOKENIZER.token_to_id("<|image_pad|>")
    assert image_id is not None
    start = token_ids.index(image_id)
    assert token_ids[start : start + NUM_VISUAL_TOKENS] == [image_id] * NUM_VISUAL_TOKENS
    assert token_ids.count(image_id) == NUM_VISUAL_TOKENS
    texts = await world.stub.Detokenize(gateway_pb2.DetokenizeRequest(token_ids=token_ids))
    assert texts.text == "user\nLook: What is it?\nassistant\n"  # special tokens have no text
    assert texts.token_bytes[start] == b""


async def test_bytes_of_half_a_character_are_not_text(world: World) -> None:
    half = (await tokenize(world, text="这"))[:2]
    response = await world.stub.Detokenize(gateway_pb2.DetokenizeRequest(token_ids=half))
    assert (response.text, list(response.token_bytes)) == ("\ufffd", [b"\xe8", b"\xbf"])


@pytest.mark.parametrize(
    ("token_ids", "reason", "field"),
    [([1, 1000], "BAD_TOKEN", "token_ids[1]"), ([1] * 262_145, "TOO_MANY_TOKENS", "token_ids")],
)
async def test_bad_tokens_are_refused(world: World, token_ids: list[int], reason: str, field: str) -> None:
    error = await error_of(world.stub.Detokenize(gateway_pb2.DetokenizeRequest(token_ids=token_ids)))
    assert (error.reason, error.field) == (reason, field)


async def test_text_and_messages_together_are_refused(world: World) -> None:
    request = gateway_pb2.TokenizeRequest(text="a", messages=ask("b").messages)
    assert (await error_of(world.stub.Tokenize(request))).reason == "TEXT_AND_MESSAGES"


async def test_a_text_beyond_the_limit_is_refused(world: World) -> None:
    error = await error_of(world.stub.Tokenize(gateway_pb2.TokenizeRequest(text="x" * 262_145)))
    assert (error.reason, error.field) == ("TEXT_TOO_LONG", "text")


async def test_tools_need_a_template_that_renders_them(world: World) -> None:
    """Every call says so, and the list of models, too."""
    request = ask("How warm is it?", tools=[gateway_pb2.Tool(name="weather")])
    answering = world.ask("How warm is it?", tools=request.tools)
    counting = world.stub.CountTokens(gateway_pb2.CountTokensRequest(messages=request.messages, tools=request.tools))
    tokenizing = world.stub.Tokenize(gateway_pb2.TokenizeRequest(messages=request.messages, tools=request.tools))
    for call in (answering, counting, tokenizing):
        error = await error_of(call)
        assert (error.reason, error.field) == ("TOOLS_UNSUPPORTED", "tools")
    (listed,) = (await world.stub.ListModels(gateway_pb2.GatewayListModelsRequest())).releases
    assert not listed.renders_tools
