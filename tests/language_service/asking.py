"""Ask an engine, and compute the expected answers."""

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import torch
from prometheus_client import REGISTRY
from torch import Tensor

from language_service.engine.interface import Engine, Finished, Generation, Tokens
from language_service.model.decoder import Decoder
from language_service.model.positions import Grid
from language_service.sampling.options import SamplingOptions
from tests.language_service import reference
from tests.language_service.small import GridImage, make_image

Part = list[int] | Tensor | GridImage  # token ids, or an image's visual tokens

PROMPTS: list[list[Part]] = [
    [[5, 6, 7]],
    [[8] * 30],
    [[9, 10], make_image(1), [11, 12]],
    [make_image(2), make_image(3), [13]],
    [[14], make_image(1)],
    [list(range(20, 33))],
]


def start(engine: Engine, salt: bytes = b"", **options: Any) -> Generation:
    return engine.open(SamplingOptions(**options), salt=salt, priority=0)


def feed(generation: Generation, parts: Sequence[Part]) -> None:
    for part in parts:
        if isinstance(part, Tensor):
            generation.add_image(part, visual_key(part))
        elif isinstance(part, GridImage):
            generation.add_image(part.tokens_NX, visual_key(part.tokens_NX, part.grid), part.grid)
        else:
            generation.add_text(part)


def visual_key(tokens_NX: Tensor, grid: Grid | None = None) -> bytes:
    """Return a key for these tokens.

    In production, it is the image's key, which also determines the grid.
    """
    return sha256(tokens_NX.float().numpy().tobytes() + str(grid).encode()).digest()


async def read(generation: Generation) -> tuple[list[int], Finished]:
    tokens: list[int] = []
    async for event in generation:
        if isinstance(event, Finished):
            return tokens, event
        if isinstance(event, Tokens):
            tokens += event.token_ids
    raise AssertionError("the answer did not end")


async def ask(engine: Engine, parts: Sequence[Part], max_tokens: int = 12, **options: Any) -> list[int]:
    generation = start(engine, **options)
    feed(generation, parts)
    generation.end_prompt(max_tokens)
    return (await read(generation))[0]


def embed(decoder: Decoder, parts: Sequence[Part]) -> Tensor:
    """Return the embeddings [T, D] of a prompt without grids."""
    embeddings = []
    for part in parts:
        assert not isinstance(part, GridImage), "`one_pass` embeds images with grids"
        embeddings.append(decoder.embed_visual(part) if isinstance(part, Tensor) else decoder.embed(torch.tensor(part)))
    return torch.cat(embeddings)


def expected(decoder: Decoder, parts: Sequence[Part], num_tokens: int = 12) -> list[int]:
    return reference.greedy(decoder, embed(decoder, parts), num_tokens)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (the engine's thread changes it without an event)
            await asyncio.sleep(0.001)


def count(name: str, **labels: str) -> float:
    """Return the value of one counter of the engine."""
    return REGISTRY.get_sample_value(f"tandem_language_{name}_total", {"tag": "test-v1.0.0", **labels}) or 0.0
