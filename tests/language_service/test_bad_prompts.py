"""The language service refuses every bad prompt at once."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from tandem.v1 import language_pb2, model_pb2, tensor_pb2
from tests.language_service.process import (
    CONFIG,
    TAG,
    Request,
    Running,
    ask,
    image,
    refusal,
    running,
    start,
    text,
    whole,
)

ENDLESS = 2**32 - 1
EMBEDDINGS = "image.visual_tokens.embeddings"


class Refused(NamedTuple):
    """A bad prompt and its error."""

    requests: list[Request]
    reason: str
    field: str
    code: str = "INVALID_ARGUMENT"


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Running]:
    with running(store, "--tags", TAG, "--kv-cache-bytes", str(64 << 20), "--max-images", "2") as process:
        yield process


def bad_streams() -> dict[str, Refused]:
    """Return messages out of order."""
    more = Request(image_chunk=language_pb2.ImageChunk(data=b"1"))
    return {
        "nothing": Refused([], "BAD_STREAM", "start"),
        "no start": Refused([text(1)], "BAD_STREAM", "start"),
        "an empty first message": Refused([Request()], "BAD_STREAM", "start"),
        "an empty later message": Refused([start(), Request()], "BAD_STREAM", "message"),
        "a whole prompt after the start": Refused([start(), whole(start(), text(1))], "BAD_STREAM", "message"),
        "two starts": Refused([start(), text(1), start()], "BAD_STREAM", "message"),
        "a chunk without an image": Refused([start(), text(1), more], "BAD_STREAM", "image_chunk"),
    }


def bad_starts() -> dict[str, Refused]:
    """Return bad tags, options, salts and priorities."""

    def opening(**fields: Any) -> Request:
        return Request(start=language_pb2.GenerateStart(tag=TAG, **fields))

    return {
        "unknown tag": Refused([start("other-v1.0.0"), text(1)], "UNKNOWN_TAG", "tag", "NOT_FOUND"),
        "no tag": Refused([start(""), text(1)], "UNKNOWN_TAG", "tag", "NOT_FOUND"),
        "temperature": Refused([start(temperature=-1), text(1)], "BAD_SAMPLING", "sampling.temperature"),
        "min_tokens above the default": Refused(
            [start(min_tokens=257), text(1)], "BAD_SAMPLING", "sampling.min_tokens"
        ),
        "long salt": Refused([opening(cache_salt=bytes(65)), text(1)], "BAD_SALT", "start.cache_salt"),
        "priority": Refused([opening(priority=101), text(1)], "BAD_PRIORITY", "start.priority"),
        "a whole prompt without a tag": Refused([whole(start(""), text(1))], "UNKNOWN_TAG", "tag", "NOT_FOUND"),
        "priority of a whole prompt": Refused(
            [whole(opening(priority=101), text(1))], "BAD_PRIORITY", "start.priority"
        ),
    }


def bad_sizes(digest: bytes) -> dict[str, Refused]:
    """Return prompts that are empty or too long."""
    too_long = "PROMPT_TOO_LONG"
    return {
        "empty prompt": Refused([start()], "EMPTY_PROMPT", "text"),
        "empty text": Refused([start(), text()], "EMPTY_SEGMENT", "text.token_ids"),
        "a whole prompt without text": Refused([whole(start(), text())], "EMPTY_SEGMENT", "text.token_ids"),
        "a long whole prompt": Refused([whole(start(), text(*[1] * 1024))], too_long, "text.token_ids"),
        "unknown token": Refused([start(), text(1, CONFIG.language.vocab_size)], "UNKNOWN_TOKEN", "text.token_ids"),
        "long prompt": Refused([start(), text(*[1] * 1024)], too_long, "text.token_ids"),
        "long by its second part": Refused([start(), text(*[1] * 1000), image(digest)], too_long, "image"),
        "no room for the answer": Refused([start(max_tokens=25), text(*[1] * 1000)], too_long, "text.token_ids"),
        "huge max_tokens": Refused([start(max_tokens=ENDLESS), text(1)], too_long, "text.token_ids"),
        "three images": Refused([start(), *[image(digest)] * 3], "TOO_MANY_IMAGES", "image"),
    }


def bad_images(digest: bytes) -> dict[str, Refused]:
    """Return visual tokens of another model, shape or type."""
    good = image(digest).image.visual_tokens.embeddings
    shape, data = list(good.shape), good.data

    def tensor(**fields: Any) -> Request:
        fields = {"data_type": tensor_pb2.DATA_TYPE_BFLOAT16, "shape": shape, "data": data, **fields}
        return image(digest, embeddings=tensor_pb2.Tensor(**fields))

    images = {
        "no tensor": image(digest, embeddings=None),
        "no type": tensor(data_type=0),
        "too few visual tokens": tensor(shape=[31, 64], data=data[:-128]),
        "too wide": tensor(shape=[32, 65], data=data + bytes(64)),
        "cut short": tensor(data=data[:-1]),
        "not a number": tensor(data=b"\xc0\x7f" + data[2:]),
    }
    tokens = "image.visual_tokens"
    return {
        "another vision half": Refused([start(), image(bytes(32))], "VISION_MISMATCH", f"{tokens}.vision_digest"),
        "short key": Refused([start(), image(digest, visual_key=b"k")], "BAD_VISUAL_KEY", f"{tokens}.visual_key"),
        **{name: Refused([start(), text(1), sent], "BAD_TENSOR", EMBEDDINGS) for name, sent in images.items()},
    }


def test_bad_prompts_are_refused_within_a_second_and_change_no_other_answer(service: Running) -> None:
    """A good request runs meanwhile.

    Its greedy tokens are the same as without bad ones.
    """
    digest = service.vision_digest
    refused = bad_streams() | bad_starts() | bad_sizes(digest) | bad_images(digest)
    prompt = [start(max_tokens=400, logit_bias={5: 0.1}), text(*range(7, 40)), image(digest), text(9)]
    alone, _ = ask(service, *prompt)
    times_s = []
    for name, bad in refused.items():
        good_call = service.stub.Generate(iter(prompt), timeout=20)
        next(good_call)
        started = time.perf_counter()
        error = refusal(service, bad.requests)
        times_s.append(time.perf_counter() - started)
        assert (error.code.name, error.reason, error.field) == (bad.code, bad.reason, bad.field), name
        good_call.cancel()
    assert median(times_s) < 1  # the median, because a busy machine may delay any single one
    good_call = service.stub.Generate(iter(prompt), timeout=20)
    tokens: list[int] = list(next(good_call).tokens.token_ids)
    for bad in refused.values():
        refusal(service, bad.requests)
    for response in good_call:
        tokens += response.tokens.token_ids
    assert tokens == alone
    service.until_idle()


def test_a_whole_prompt_in_one_message_gets_the_same_answer(service: Running) -> None:
    options, prompt = start(max_tokens=20, temperature=1.0, seed=1), text(7, 8, 9)
    (model,) = service.stub.ListModels(model_pb2.ListModelsRequest()).models
    assert model.language.takes_whole_prompts
    tokens, finished = ask(service, whole(options, prompt))
    assert tokens == ask(service, options, prompt)[0]
    assert finished.usage.prompt_tokens == 3


def test_nothing_after_a_whole_prompt_is_read(service: Running) -> None:
    one = whole(start(max_tokens=4), text(7))
    assert ask(service, one, text(8), one)[1].usage.prompt_tokens == 1
