"""Fixtures: a gateway with scripted stages, images and key files."""

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer

from checkpoint.tokenizer import byte_tokenizer
from tests.gateway.scripted import World, scripted_world

MakeWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
def make_world(store: Path, tokenizer: Tokenizer) -> MakeWorld:
    """Return a function that runs a gateway with scripted stages."""
    return partial(scripted_world, store, tokenizer)


@pytest.fixture
async def world(make_world: MakeWorld) -> AsyncIterator[World]:
    async with make_world() as world:
        yield world


@pytest.fixture(scope="session")
def make_image() -> Callable[[int], bytes]:
    """Return `make_image(n)`: a PNG file that differs per n."""

    def make(number: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, 80)).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def write_keys(tmp_path: Path) -> Callable[..., Path]:
    """Return `write_keys(*entries)`, which returns a key file's path."""

    def write(*entries: str) -> Path:
        path = tmp_path / "keys.toml"
        path.write_text("".join(entries))
        return path

    return write
