"""A steady load: streams that ask one question after the other and write down how each ended."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem.client.aio import AsyncClient
from tandem.errors import TandemError
from tests.end_to_end.cluster import image

DEADLINE_S = 30.0
# What a client may see later than its deadline: a busy machine's event loop.
GRACE_S = 3.0
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One request that ended."""

    gateway: str
    with_image: bool
    began_at: float  # monotonic seconds
    ended_at: float
    text: str  # that came, to the end or until the error
    error: TandemError | None

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at


@dataclass
class Load:
    """`streams` at a time, spread over the gateways; every third question has an image nobody has seen."""

    addresses: dict[str, str]  # gateways by name
    streams: int = 50
    max_tokens: int = 12
    ended: list[Ended] = field(default_factory=list)
    _stopping: bool = False

    async def run(self) -> None:
        """Ask until `stop` is called, and wait for what was asked."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.streams):
                name = list(self.addresses)[number % len(self.addresses)]
                tasks.create_task(self._stream(number, name))

    def stop(self) -> None:
        self._stopping = True

    async def until_ended(self, number: int) -> None:
        """Wait until so many requests have ended."""
        async with asyncio.timeout(3 * DEADLINE_S):
            while len(self.ended) < number:  # noqa: ASYNC110  (streams have better to do than to tell)
                await asyncio.sleep(0.02)

    def since(self, at: float) -> list[Ended]:
        """Return the requests that ended after `at`."""
        return [one for one in self.ended if one.ended_at > at]

    async def _stream(self, number: int, gateway: str) -> None:
        async with AsyncClient(self.addresses[gateway], timeout_s=DEADLINE_S) as client:
            turn = number  # so that at any time some have an image and some have not
            while not self._stopping:
                self.ended.append(await self._ask(client, gateway, with_image=turn % 3 == 0))
                turn += 1
                if self.ended[-1].error is not None:
                    await asyncio.sleep(0.2)  # as a client would

    async def _ask(self, client: AsyncClient, gateway: str, *, with_image: bool) -> Ended:
        number = next(_numbers)
        images = [image(number)] if with_image else []
        began_at = time.monotonic()
        stream = client.generate(f"Question {number}?", images=images, max_tokens=self.max_tokens, ignore_eos=True)
        error = None
        try:
            async for _ in stream:
                pass
        except TandemError as raised:
            error = raised
        return Ended(
            gateway=gateway,
            with_image=with_image,
            began_at=began_at,
            ended_at=time.monotonic(),
            text=stream.text,
            error=error,
        )


def reasons(ended: Sequence[Ended]) -> dict[str, int]:
    """Return how many ended in which way."""
    counts: dict[str, int] = {}
    for one in ended:
        name = "answered" if one.error is None else f"{one.error.code.name}/{one.error.reason}"
        counts[name] = counts.get(name, 0) + 1
    return counts
