"""The official Python client, with the demo model."""

import asyncio
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from tandem.client import Client
from tandem.stack import Stack
from tests.http_gateway.clients.conftest import BAG, UMBRELLAS, base_url, data_url

pytestmark = pytest.mark.slow

RELEASE = "tandem-demo-v1.1.0"
QUESTION = "Is the bag made of leather?"


def image_part(url: str) -> Any:
    return {"type": "image_url", "image_url": {"url": url}}


def ask_about(*urls: str, question: str = QUESTION) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": [*map(image_part, urls), {"type": "text", "text": question}]}]


@pytest.fixture
async def async_client(demo: Stack) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=base_url(demo), api_key="none") as client:
        yield client


@pytest.fixture
def gateway(demo: Stack) -> Iterator[Client]:
    with Client(demo.address) as client:
        yield client


def test_an_image_is_asked_about(client: OpenAI, gateway: Client) -> None:
    answer = client.chat.completions.create(model=RELEASE, messages=ask_about(data_url(BAG)))
    expected = gateway.ask(QUESTION, images=[BAG])
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish_reason)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert (answer.model, choice.message.role) == (RELEASE, "assistant")


def test_a_stream_has_the_same_text_and_its_usage(client: OpenAI) -> None:
    messages = ask_about(data_url(BAG))
    whole = client.chat.completions.create(model="default", messages=messages)
    stream = client.chat.completions.create(
        model="default", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) > 4  # it did stream


def test_the_streaming_helper_reads_the_stream(client: OpenAI) -> None:
    with client.chat.completions.stream(model="default", messages=ask_about(data_url(BAG))) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content


def test_a_conversation_with_several_images_and_instructions(client: OpenAI, gateway: Client) -> None:
    messages: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "Answer in one sentence."},
        *ask_about(data_url(BAG)),
        {"role": "assistant", "content": "Yes."},
        *ask_about(data_url(UMBRELLAS), question="And how many umbrellas are there?"),
    ]
    answer = client.chat.completions.create(model="default", messages=messages, max_completion_tokens=32)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 64  # both images
    again = client.chat.completions.create(model="default", messages=messages, max_completion_tokens=32)
    assert again.choices[0].message.content == answer.choices[0].message.content
    levels = [image["cache_level"] for image in again.to_dict()["tandem"]["images"]]  # type: ignore[index]
    assert levels == ["gateway", "gateway"]


def test_a_file_is_uploaded_once_and_named_in_questions(client: OpenAI) -> None:
    with BAG.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="vision")
    assert uploaded.id == hashlib.sha256(BAG.read_bytes()).hexdigest()
    assert (uploaded.bytes, uploaded.filename, uploaded.purpose) == (BAG.stat().st_size, BAG.name, "vision")
    named = client.chat.completions.create(model="default", messages=ask_about(f"tandem:{uploaded.id}"))
    sent = client.chat.completions.create(model="default", messages=ask_about(data_url(BAG)))
    assert named.choices[0].message.content == sent.choices[0].message.content
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="default", messages=ask_about(f"tandem:{'0' * 64}"))
    assert raised.value.code == "IMAGE_NOT_FOUND"


async def test_asyncio_and_many_at_once(async_client: AsyncOpenAI) -> None:
    messages = ask_about(data_url(BAG))

    async def stream() -> str:
        chunks = await async_client.chat.completions.create(model="default", messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async def whole() -> str | None:
        answer = await async_client.chat.completions.create(model="default", messages=messages)
        return answer.choices[0].message.content

    texts = await asyncio.gather(*(stream() for _ in range(4)), *(whole() for _ in range(4)))
    assert len(set(texts)) == 1


class Bag(BaseModel):
    """A bag in an image."""

    material: Literal["leather", "cloth", "paper"]
    is_closed: bool


def test_structured_output_is_parsed(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model="default", messages=ask_about(data_url(BAG)), response_format=Bag)
    assert isinstance(answer.choices[0].message.parsed, Bag)
    assert answer.choices[0].finish_reason == "stop"


def test_constraints_of_vllm_are_kept(client: OpenAI) -> None:
    def ask(**constraint: Any) -> str:
        answer = client.chat.completions.create(
            model="default", messages=ask_about(data_url(BAG)), extra_body=constraint, max_tokens=64
        )
        return answer.choices[0].message.content or ""

    assert ask(guided_choice=["leather", "cloth"]) in ("leather", "cloth")
    assert re.fullmatch(r"[A-C]{3}-[0-9]{2}", ask(guided_regex="[A-C]{3}-[0-9]{2}"))
    assert json.loads(ask(guided_json={"enum": [1, 2]})) in (1, 2)


def test_a_json_object_begins_as_one(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=ask_about(data_url(BAG)), response_format={"type": "json_object"}, max_tokens=16
    )
    assert (answer.choices[0].message.content or "").startswith("{")


def test_sampling_options_of_all_makes(client: OpenAI) -> None:
    def ask(**more: Any) -> list[str | None]:
        answer = client.chat.completions.create(
            model="default",
            messages=ask_about(data_url(BAG)),
            temperature=20,
            top_p=0.99,
            seed=7,
            max_tokens=12,
            presence_penalty=0.1,
            frequency_penalty=0.1,
            logit_bias={"5": -100},
            user="someone",
            extra_body={"top_k": 50, "min_p": 0.0001, "repetition_penalty": 1.1, "ignore_eos": True},
            **more,
        )
        return [choice.message.content for choice in answer.choices]

    assert ask() == ask()
    several = ask(n=3)
    assert len(set(several)) == 3
    assert several[0] == ask()[0]


def test_log_probabilities_spell_the_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=ask_about(data_url(BAG)), logprobs=True, top_logprobs=3, max_tokens=8
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert "".join(one.token for one in logprobs.content).startswith(answer.choices[0].message.content or "?")
    assert all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in logprobs.content)


def test_stop_strings_end_the_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="default", messages=ask_about(data_url(BAG)))
    word = (whole.choices[0].message.content or "").split()[1]
    short = client.chat.completions.create(model="default", messages=ask_about(data_url(BAG)), stop=[word])
    assert short.choices[0].message.content == (whole.choices[0].message.content or "").partition(word)[0]


def test_models_are_listed_and_found(client: OpenAI) -> None:
    models = {model.id: model.to_dict() for model in client.models.list()}
    assert models.keys() == {RELEASE, "default"}
    assert models["default"] == {**models[RELEASE], "id": "default"}
    assert (models[RELEASE]["ready"], models[RELEASE]["root"]) == (True, RELEASE)
    assert client.models.retrieve(RELEASE).id == RELEASE
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-4o")
    assert raised.value.code == "UNKNOWN_RELEASE"


def test_a_release_is_pinned_by_model_and_by_header(client: OpenAI) -> None:
    for pin in ({"model": "no-v1.0.0"}, {"model": "default", "extra_headers": {"x-tandem-release": "no-v1.0.0"}}):
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(messages=ask_about(data_url(BAG)), **pin)
        assert raised.value.code == "UNKNOWN_RELEASE"


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "no question": ({"messages": []}, "NO_MESSAGES", "messages"),
    "a remote image": ({"messages": ask_about("https://example.com/a.png")}, "IMAGE_URLS_DISABLED", "messages[0]"),
    "no image": ({"messages": ask_about("data:image/png;base64,YWJj")}, "IMAGE", "messages[0]"),
    "an unknown field": ({"extra_body": {"temprature": 1}}, "UNKNOWN_FIELD", "temprature"),
    "a wrong type": ({"temperature": "hot"}, "BAD_FIELD", "temperature"),
    "tools the template has no place for": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "TOOLS_UNSUPPORTED",
        "tools",
    ),
    "a schema that cannot be": ({"extra_body": {"guided_json": {"type": "colour"}}}, "BAD_CONSTRAINT", None),
    "a prompt that is too long": ({"messages": ask_about(question="word " * 3000)}, "PROMPT_TOO_LONG", "messages"),
}


@pytest.mark.parametrize(("fields", "code", "param"), list(BAD_REQUESTS.values()), ids=list(BAD_REQUESTS))
def test_errors_have_a_code_a_place_and_the_request_id(
    client: OpenAI, fields: dict[str, Any], code: str, param: str | None
) -> None:
    request: dict[str, Any] = {"model": "default", "messages": ask_about(data_url(BAG)), **fields}
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**request)
    error = raised.value
    assert (error.code or "").startswith(code)
    assert param is None or (error.param or "").startswith(param)
    assert error.type == "invalid_request_error"
    assert error.request_id == error.body["request_id"]  # type: ignore[index]


def test_a_stream_that_is_left_is_cancelled(client: OpenAI, gateway: Client) -> None:
    """Closing it frees the place in the batch."""
    stream = client.chat.completions.create(
        model="default",
        messages=ask_about(data_url(BAG)),
        stream=True,
        max_tokens=900,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    assert gateway.ask(QUESTION, images=[BAG], timeout_s=20).text


def test_a_timeout_is_the_clients(client: OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.001, max_retries=0).chat.completions.create(
            model="default", messages=ask_about(data_url(BAG))
        )


def test_one_client_serves_many_threads(client: OpenAI) -> None:
    texts: list[str | None] = []

    def ask() -> None:
        answer = client.chat.completions.create(model="default", messages=ask_about(data_url(BAG)))
        texts.append(answer.choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(texts), len(set(texts))) == (8, 1)
