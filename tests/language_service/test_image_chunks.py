"""Send images whole and in chunks, with and without grids."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from chassis.tensors import MAX_CHUNK_BYTES
from checkpoint.initial import create_checkpoint
from checkpoint.presets import TINY_QWEN3_VL
from language_service.engine import Grid
from language_service.prompt import PromptLimits, PromptReader
from language_service.sampling import SamplingOptions
from tandem.v1 import language_pb2, model_pb2, tensor_pb2
from tests.language_service.process import TAG, Request, Running, ask, random_bytes, refusal, running, start, text

DIGEST, KEY = bytes(32), b"k" * 32
LIMITS = PromptLimits(
    vocab_size=100,
    context_length=64,
    width=8,
    num_levels=4,
    num_visual_tokens=None,
    max_images=2,
    vision_digest=DIGEST,
    default_max_tokens=4,
)
FIXED = replace(LIMITS, num_visual_tokens=6, num_levels=1)
DATA = random_bytes(0, 6 * 32)
NAN = b"\xc0\x7f"
EMBEDDINGS, CHUNK, GRID = "image.visual_tokens.embeddings", "image_chunk.data", "image.visual_tokens.grid"

Step = Callable[[PromptReader], object]


def segment(
    data: bytes = DATA,
    *,
    shape: tuple[int, int] = (6, 32),
    grid: tuple[int, int] | None = (2, 3),
    digest: bytes = DIGEST,
) -> language_pb2.ImageSegment:
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=shape, data=data)
    tokens = tensor_pb2.VisualTokens(embeddings=tensor, visual_key=KEY, vision_digest=digest)
    if grid is not None:
        tokens.grid.CopyFrom(tensor_pb2.VisualGrid(rows=grid[0], columns=grid[1]))
    return language_pb2.ImageSegment(visual_tokens=tokens)


def chunk(data: bytes) -> language_pb2.ImageChunk:
    return language_pb2.ImageChunk(data=data)


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=5))
def test_chunks_of_any_size_give_the_whole_image(cuts: list[int]) -> None:
    """Also if a chunk ends inside a number."""
    edges = sorted({0, *cuts, len(DATA)})
    reader = PromptReader(LIMITS, SamplingOptions())
    first, *others = [DATA[start:end] for start, end in pairwise(edges)]
    found = [reader.image(segment(first)), *(reader.image_chunk(chunk(data)) for data in others)]
    assert found[:-1] == [None] * len(others)
    image = found[-1]
    assert image is not None
    whole = PromptReader(LIMITS, SamplingOptions()).image(segment())
    assert whole is not None
    assert torch.equal(image.embeddings_NX, whole.embeddings_NX)
    assert image.embeddings_NX.shape == (6, 32)
    assert (image.content_key, image.grid) == (whole.content_key, Grid(2, 3))
    assert (reader.num_tokens, reader.num_images) == (6, 1)


def test_the_prefix_cache_knows_an_image_by_all_that_arrived() -> None:
    """Otherwise one caller's embeddings would answer for another's image."""
    segments = [
        segment(),
        segment(DATA[2:] + DATA[:2]),
        segment(grid=(3, 2)),
        segment(grid=(1, 6)),
        segment(),
    ]
    segments[-1].visual_tokens.visual_key = bytes(32)
    images = [PromptReader(LIMITS, SamplingOptions()).image(one) for one in segments]
    assert len({image.content_key for image in images if image is not None}) == len(segments)


def test_an_image_may_begin_without_data() -> None:
    reader = PromptReader(LIMITS, SamplingOptions())
    assert reader.image(segment(b"")) is None
    assert reader.image_chunk(chunk(DATA)) is not None


def test_models_without_a_grid_take_chunks_too() -> None:
    reader = PromptReader(FIXED, SamplingOptions())
    assert reader.image(segment(DATA[:33], shape=(6, 8), grid=None)) is None
    image = reader.image_chunk(chunk(DATA[33:96]))
    assert image is not None
    assert (image.embeddings_NX.shape, image.grid) == ((6, 8), None)


def begin(data: bytes = b"", **fields: Any) -> Step:
    return lambda reader: reader.image(segment(data, **fields))


def go_on(data: bytes) -> Step:
    return lambda reader: reader.image_chunk(chunk(data))


def say(*token_ids: int) -> Step:
    return lambda reader: reader.text(language_pb2.TextSegment(token_ids=token_ids))


REFUSALS: dict[str, tuple[list[Step], str, str]] = {
    "no grid": ([begin(grid=None)], "BAD_TENSOR", GRID),
    "no rows": ([begin(grid=(0, 6))], "BAD_TENSOR", GRID),
    "no columns": ([begin(grid=(6, 0))], "BAD_TENSOR", GRID),
    "a grid of another number": ([begin(grid=(2, 4))], "BAD_TENSOR", EMBEDDINGS),
    "a huge grid": ([begin(grid=(2**32 - 1, 2**32 - 1))], "BAD_TENSOR", EMBEDDINGS),
    "no levels": ([begin(shape=(6, 8))], "BAD_TENSOR", EMBEDDINGS),
    "another vision half": ([begin(digest=b"d" * 32)], "VISION_MISMATCH", "image.visual_tokens.vision_digest"),
    "longer than the context": ([begin(shape=(64, 32), grid=(8, 8))], "PROMPT_TOO_LONG", "image"),
    "no room after text": ([say(*[1] * 58), begin()], "PROMPT_TOO_LONG", "image"),
    "too much data": ([begin(DATA + b"\0")], "BAD_TENSOR", EMBEDDINGS),
    "not a number": ([begin(NAN + DATA[2:])], "BAD_TENSOR", EMBEDDINGS),
    "chunk without an image": ([go_on(b"1")], "BAD_STREAM", "image_chunk"),
    "chunk after text": ([begin(DATA), say(1), go_on(b"1")], "BAD_STREAM", "image_chunk"),
    "chunk after a complete image": ([begin(DATA), go_on(b"1")], "BAD_STREAM", "image_chunk"),
    "empty chunk": ([begin(), go_on(b"")], "BAD_TENSOR", CHUNK),
    "large chunk": ([begin(), go_on(bytes(MAX_CHUNK_BYTES + 1))], "BAD_TENSOR", CHUNK),
    "too much data in a chunk": ([begin(DATA[:-2]), go_on(b"123")], "BAD_TENSOR", CHUNK),
    "not a number in a chunk": ([begin(DATA[:4]), go_on(NAN + DATA[6:])], "BAD_TENSOR", CHUNK),
    "not a number across chunks": ([begin(DATA[:4] + NAN[:1]), go_on(NAN[1:] + DATA[6:])], "BAD_TENSOR", CHUNK),
    "text inside an image": ([begin(DATA[:-1]), say(1)], "BAD_STREAM", "text"),
    "image inside an image": ([begin(DATA[:-1]), begin(DATA)], "BAD_STREAM", "image"),
    "end inside an image": ([begin(DATA[:-1]), lambda reader: reader.end()], "BAD_TENSOR", EMBEDDINGS),
    "three images": ([begin(DATA)] * 3, "TOO_MANY_IMAGES", "image"),
}


@pytest.mark.parametrize(("steps", "reason", "field"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_bad_image_is_refused_with_its_field(steps: list[Step], reason: str, field: str) -> None:
    reader = PromptReader(LIMITS, SamplingOptions())
    for step in steps[:-1]:
        step(reader)
    with pytest.raises(InvalidArgument) as caught:
        steps[-1](reader)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_a_model_without_a_grid_refuses_one() -> None:
    with pytest.raises(InvalidArgument) as caught:
        PromptReader(FIXED, SamplingOptions()).image(segment(DATA[:96], shape=(6, 8)))
    assert (caught.value.reason, caught.value.field) == ("BAD_TENSOR", GRID)


# The same with a process.


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = tmp_path_factory.mktemp("models")
    create_checkpoint(models, TAG, TINY_QWEN3_VL)
    with running(models, "--tags", TAG, "--kv-cache-bytes", str(64 << 20)) as process:
        yield process


def image_messages(service: Running, rows: int, columns: int, *, chunk_bytes: int, seed: int = 0) -> list[Request]:
    shape = (rows * columns, TINY_QWEN3_VL.token_width)
    data = random_bytes(seed, rows * columns * TINY_QWEN3_VL.token_width)
    pieces = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    first = segment(pieces[0], shape=shape, grid=(rows, columns), digest=service.vision_digest)
    first.visual_tokens.visual_key = bytes([seed, rows, columns, *bytes(29)])
    return [Request(image=first), *(Request(image_chunk=chunk(piece)) for piece in pieces[1:])]


def test_the_answer_is_the_same_for_an_image_in_chunks(service: Running) -> None:
    """Even for one of more than a megabyte."""

    def prompt(chunk_bytes: int) -> list[Request]:
        sizes = ((40, 60), (2, 3))
        images = [image_messages(service, *size, chunk_bytes=chunk_bytes, seed=seed) for seed, size in enumerate(sizes)]
        return [start(max_tokens=12), text(7, 8), *images[0], text(9), *images[1], text(10)]

    tokens, finished = ask(service, *prompt(chunk_bytes=2**24))
    assert (finished.usage.prompt_tokens, finished.usage.visual_tokens) == (2410, 2406)
    assert ask(service, *prompt(chunk_bytes=MAX_CHUNK_BYTES))[0] == tokens
    again, finished = ask(service, *prompt(chunk_bytes=99_999))
    assert again == tokens
    assert finished.usage.cached_prompt_tokens > 2000
    service.until_idle()


def test_the_grid_changes_the_answer(service: Running) -> None:
    def answer(rows: int, columns: int) -> list[int]:
        images = image_messages(service, rows, columns, chunk_bytes=2**20, seed=3)
        options = start(max_tokens=20, temperature=1.0, seed=1)
        return ask(service, options, text(7), *images, text(9))[0]

    assert answer(3, 4) != answer(4, 3)


def test_the_model_tells_that_the_number_of_visual_tokens_varies(service: Running) -> None:
    language = service.stub.GetModel(model_pb2.GetModelRequest(tag=TAG)).model.language
    assert (language.num_visual_tokens, language.num_levels, language.width) == (0, 4, 64)


def test_an_unfinished_image_frees_everything(service: Running) -> None:
    messages = image_messages(service, 4, 6, chunk_bytes=1000)
    for prompt, reason in ((messages[:-1], "BAD_TENSOR"), ([*messages[:-1], text(1)], "BAD_STREAM")):
        assert refusal(service, [start(), text(7), *prompt]).reason == reason
    service.until_idle()
