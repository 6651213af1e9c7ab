"""A steady load of questions, and their outcomes."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tandem.client.aio import AsyncClient
from tandem.errors import TandemError
from tests.end_to_end.cluster import image

DEADLINE_S = 30.0
GRACE_S = 3.0  # delay of a client's event loop after a deadline, on a busy machine
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one request."""

    gateway: str
    with_image: bool
    began_at: float  # monotonic seconds
    ended_at: float
    text: str  # received until the end or the error
    error: TandemError | None

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at


@dataclass
class LoadGenerator:
    """Streams of questions, spread over the gateways.

    Every third question has a new image.
    """

    addresses: dict[str, str]  # gateways by name
    streams: int = 50
    max_tokens: int = 12
    api_key: str | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    _stopping: bool = False

    async def run(self) -> None:
        """Ask until `stop` is called and all answers are complete."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.streams):
                name = list(self.addresses)[number % len(self.addresses)]
                tasks.create_task(self._stream(number, name))

    def stop(self) -> None:
        self._stopping = True

    async def wait_for_outcomes(self, number: int) -> None:
        """Wait until `number` requests have ended."""
        async with asyncio.timeout(3 * DEADLINE_S):
            while len(self.outcomes) < number:  # noqa: ASYNC110  (polling keeps the streams simple)
                await asyncio.sleep(0.02)

    def ended_after(self, at: float) -> list[Outcome]:
        """Return the outcomes of the requests that ended after `at`."""
        return [one for one in self.outcomes if one.ended_at > at]

    async def _stream(self, number: int, gateway: str) -> None:
        address = self.addresses[gateway]
        async with AsyncClient(address, timeout_s=DEADLINE_S, api_key=self.api_key, allow_plaintext=True) as client:
            turn = number  # a different start for each stream, so images are spread over time
            while not self._stopping:
                self.outcomes.append(await self._ask(client, gateway, with_image=turn % 3 == 0))
                turn += 1
                if self.outcomes[-1].error is not None:
                    await asyncio.sleep(0.2)  # back-off, like a real client

    async def _ask(self, client: AsyncClient, gateway: str, *, with_image: bool) -> Outcome:
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
        return Outcome(
            gateway=gateway,
            with_image=with_image,
            began_at=began_at,
            ended_at=time.monotonic(),
            text=stream.text,
            error=error,
        )


def count_outcomes(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Count the answers, and the errors by code and reason."""
    counts: dict[str, int] = {}
    for one in outcomes:
        name = "answered" if one.error is None else f"{one.error.code.name}/{one.error.reason}"
        counts[name] = counts.get(name, 0) + 1
    return counts
