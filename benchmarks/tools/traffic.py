"""Simulated users that ask about images and measure every token."""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from tokenizers import Tokenizer

from checkpoint.config import read_config
from tandem.client import AsyncClient

QUESTIONS = ("What colour is the bag?", "Is it made of leather?", "Who is this for?", "What stands beside it?")
ZIPF = 1.1  # exponent

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its client measured it."""

    first_s: float  # time to the first token
    gaps_s: list[float]  # times between tokens
    level: str  # cache level that had the image's visual tokens

    @property
    def is_hit(self) -> bool:
        """Whether the image was already encoded."""
        return self.level not in ("miss", "in_flight")


@dataclass(slots=True)
class Measurements:
    """Measurements of one setting, one entry per round."""

    requests_per_s: list[float] = field(default_factory=list)
    one_image_per_s: list[float] = field(default_factory=list)  # requests/s if all are about one cached image
    samples: list[list[Sample]] = field(default_factory=list)

    def first_ms(self, percent: float, *, hits_only: bool = False) -> float:
        """Return a percentile of the time to first token, milliseconds."""
        rounds = [[one.first_s for one in each if one.is_hit or not hits_only] for each in self.samples]
        return percentile_ms(rounds, percent)

    def gap_ms(self, percent: float) -> float:
        """Return a percentile of the time between tokens, milliseconds."""
        return percentile_ms([[gap for one in each for gap in one.gaps_s] for each in self.samples], percent)

    def share_of_hits(self) -> float:
        """Return the share of cache hits, percent."""
        hits = [one.is_hit for each in self.samples for one in each]
        return 100 * sum(hits) / len(hits)


class LoadGenerator:
    """Sends questions about images to one gateway."""

    def __init__(self, client: AsyncClient, *, answer_tokens: int, bias: dict[int, float]) -> None:
        """Use a logit bias from `printable_only`, for answers of `answer_tokens`."""
        self._client = client
        self._answer_tokens = answer_tokens
        self._bias = bias
        self._questions = itertools.cycle(QUESTIONS)

    async def ask(self, image: bytes) -> Sample:
        """Ask one question about an image and measure its answer."""
        started = time.perf_counter()
        stream = self._client.generate(
            next(self._questions),
            images=[image],
            max_tokens=self._answer_tokens,
            ignore_eos=True,
            logit_bias=self._bias,
        )
        times = [time.perf_counter() async for _ in stream]
        return Sample(
            first_s=times[0] - started,
            gaps_s=[later - earlier for earlier, later in itertools.pairwise(times)],
            level=stream.final.images[0].cache_level,
        )

    async def closed_loop(self, images: Iterable[bytes], users: int) -> float:
        """Ask about all images with a fixed number of users.

        Each user asks the next question when the answer is complete. Returns requests/s of all users together.
        """
        queue = iter(images)

        async def user() -> int:
            return len([await self.ask(image) for image in queue])

        started = time.perf_counter()
        num_asked = await asyncio.gather(*(user() for _ in range(users)))
        return sum(num_asked) / (time.perf_counter() - started)

    async def open_loop(self, times_s: Sequence[float], images: Sequence[bytes]) -> list[Sample]:
        """Ask about each image at its time, regardless of answers."""

        async def later(at_s: float, image: bytes) -> Sample:
            await asyncio.sleep(at_s)
            return await self.ask(image)

        return await asyncio.gather(*(later(*each) for each in zip(times_s, images, strict=True)))


def printable_only(folder: Path) -> dict[int, float]:
    """Return a logit bias that allows only printable ASCII tokens.

    The gateway sends such a token as text at once, so the client can measure it.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = {token: tokenizer.decode([token]) for token in range(read_config(folder).language.vocab_size)}
    return {token: -100.0 for token, text in texts.items() if not (text and text.isascii() and text.isprintable())}


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Return `count` random request times, on average `rate` per second."""
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.expovariate(rate) for _ in range(count)))


def zipf(items: Sequence[T], count: int, seed: int) -> list[T]:
    """Return `count` random items, the first most often."""
    weights = [1 / (rank + 1) ** ZIPF for rank in range(len(items))]
    return random.Random(seed).choices(items, weights, k=count)


def percentile_ms(rounds: Iterable[Sequence[float]], percent: float) -> float:
    """Return the median of the rounds' percentiles, milliseconds.

    A round has too few values for percentiles above 95: those are taken over all rounds together.
    """
    filled = [values for values in rounds if values]
    if percent > 95:
        filled = [list(itertools.chain(*filled))]
    return 1000 * statistics.median(float(np.percentile(values, percent)) for values in filled)
