"""A model store with a tiny checkpoint, a gateway between scripted stages, and the three real processes."""

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from checkpoint.tokenizer import byte_tokenizer
from tandem.stack import Stack, StackConfig
from tests.gateway.scripted import TAG, World, scripted_world

MakeWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model store with one tiny random checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    create_checkpoint(folder, TAG, PRESETS["tiny"], seed=0, dtype=torch.bfloat16, shards=1, container="safetensors")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
def make_world(store: Path, tokenizer: Tokenizer) -> MakeWorld:
    """Return `make_world(**settings)`: a context manager around a gateway and its scripted stages."""
    return partial(scripted_world, store, tokenizer)


@pytest.fixture
async def world(make_world: MakeWorld) -> AsyncIterator[World]:
    async with make_world() as world:
        yield world


@pytest.fixture(scope="session")
def stack(store: Path) -> Iterator[Stack]:
    """Yield the three real processes, ready."""
    with Stack(StackConfig(models=store, release=TAG, precision="float32", threads=1, drain_s=2)) as stack:
        yield stack


@pytest.fixture(scope="session")
def picture() -> Callable[[int], bytes]:
    """Return `picture(n)`: the PNG file of the n-th of many different pictures."""

    def make(number: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, 80)).save(file, "PNG")
        return file.getvalue()

    return make
