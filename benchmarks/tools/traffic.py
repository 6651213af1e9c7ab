"""Users of a stack: they ask about images, one after the other or at given times, and note when each token came."""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from checkpoint.config import read_config
from tandem.client import AsyncClient

QUESTIONS = ("What colour is the bag?", "Is it made of leather?", "Who is this for?", "What stands beside it?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its user saw it."""

    first_s: float  # to the first piece of text
    gaps_s: list[float]  # between two pieces, each one token
    level: str  # where its image's visual tokens came from

    @property
    def is_hit(self) -> bool:
        """Whether the image had been encoded before the request."""
        return self.level not in ("miss", "in_flight")


@dataclass(slots=True)
class Taken:
    """What was measured of one setting, one entry a round."""

    requests_per_s: list[float] = field(default_factory=list)
    best_per_s: list[float] = field(default_factory=list)  # where all ask about one image, which is known
    samples: list[list[Sample]] = field(default_factory=list)

    def first_ms(self, percent: float, *, hits_only: bool = False) -> float:
        """Return a percentile of the time to the first token."""
        rounds = [[one.first_s for one in each if one.is_hit or not hits_only] for each in self.samples]
        return percentile_ms(rounds, percent)

    def gap_ms(self, percent: float) -> float:
        """Return a percentile of the time between two tokens."""
        return percentile_ms([[gap for one in each for gap in one.gaps_s] for each in self.samples], percent)

    def share_of_hits(self) -> float:
        """Return which share of the images had been encoded before, percent."""
        hits = [one.is_hit for each in self.samples for one in each]
        return 100 * sum(hits) / len(hits)


class Asker:
    """Sends questions to one gateway."""

    def __init__(self, client: AsyncClient, *, answer_tokens: int, bias: dict[int, float]) -> None:
        """Ask for answers of `answer_tokens`; `bias` as `readable_only` gives it."""
        self._client = client
        self._answer_tokens = answer_tokens
        self._bias = bias
        self._questions = itertools.cycle(QUESTIONS)

    async def ask(self, image: bytes) -> Sample:
        """Ask about an image and read the answer as it comes."""
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

    async def ask_in_turn(self, images: Iterable[bytes], users: int) -> float:
        """Let `users` ask one question after the other until none is left; return requests a second of all together."""
        left = iter(images)

        async def user() -> int:
            return len([await self.ask(image) for image in left])

        started = time.perf_counter()
        asked = await asyncio.gather(*(user() for _ in range(users)))
        return sum(asked) / (time.perf_counter() - started)

    async def ask_at(self, times_s: Sequence[float], images: Sequence[bytes]) -> list[Sample]:
        """Ask each question at its time, whatever became of the others."""

        async def later(at_s: float, image: bytes) -> Sample:
            await asyncio.sleep(at_s)
            return await self.ask(image)

        return await asyncio.gather(*(later(*each) for each in zip(times_s, images, strict=True)))


def readable_only(folder: Path) -> dict[int, float]:
    """Return a bias that leaves tokens of plain characters alone, so that every token shows when it comes."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = {token: tokenizer.decode([token]) for token in range(read_config(folder).language.vocab_size)}
    return {token: -100.0 for token, text in texts.items() if not (text and text.isascii() and text.isprintable())}


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Return random times of requests that come independently of one another, `rate` a second on average."""
    rng = random.Random(seed)
    return list(itertools.accumulate(rng.expovariate(rate) for _ in range(count)))


def percentile_ms(rounds: Iterable[Sequence[float]], percent: float) -> float:
    """Return the median of the rounds' percentiles, milliseconds; above 95 that of all, for which one has too few."""
    filled = [values for values in rounds if values]
    if percent > 95:
        filled = [list(itertools.chain(*filled))]
    return 1000 * statistics.median(float(np.percentile(values, percent)) for values in filled)
