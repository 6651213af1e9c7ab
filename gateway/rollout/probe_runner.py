"""Ask the probes: before a canary gets traffic, then in the steps.

One of several gateways does it, by a lease in the store.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from chassis.cancellation import is_asked_to_stop
from chassis.deadline import Deadline
from chassis.errors import TandemError
from checkpoint.probes import Grader, Probes, merge_probes, open_grader, read_probes_file
from checkpoint.release_probes import read_release_probes
from checkpoint.store import ModelStore
from checkpoint.tags import split_release
from gateway.answer import ExchangeBuilder
from gateway.rollout.policy import PairCounter, Plan, Probing, State, is_open
from gateway.rollout.probe_answers import ProbeAsker
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic

LEASE_S = 10.0  # a gateway that dies loses the probes to another after this time
RECORD_EVERY_S = 5.0  # in the steps. A gateway that dies loses the answers of this time
_DAY_S = 86_400.0

Answers = AsyncGenerator[Probing, None]
Record = Callable[[Probing], Awaitable[bool]]  # keeps the answers so far, and returns whether to go on

_log = structlog.get_logger()


class ProbeRunner:
    """Runs the probes of a rollout. For one event loop."""

    def __init__(
        self,
        store_sync: StoreSync,
        traffic: Traffic,
        exchanges: ExchangeBuilder,
        models: ModelStore,
        *,
        file: Path | None,
        grader: str | None,
    ) -> None:
        """Read nothing yet.

        Args:
            store_sync: has the lease, and shows the answers so far.
            traffic: opens the releases.
            exchanges: builds the requests.
            models: has the probes of both releases.
            file: further probes, as the operator named them.
            grader: judges answers to probes with the judge `grader`, see `open_grader`.
        """
        self._store_sync = store_sync
        self._traffic = traffic
        self._exchanges = exchanges
        self._models = models
        self._file = file
        self._grader = grader
        self._changed_in = ""  # the rollout in whose steps the files of probes changed

    async def read(self, plan: Plan) -> Probes:
        """Return the probes of both releases and of the operator.

        Raises:
            TandemError: a file is not valid. The message says why.
        """
        return await asyncio.to_thread(self._read, plan)

    async def run(self, state: State) -> Probing | None:
        """Return the result of the probes before traffic.

        It ends when quality is decided, when all or enough probes are asked, or when the time is up. None while another
        gateway runs them. An empty result means that there are none.

        Raises:
            TandemError: the probes cannot be read, or the store cannot be reached.
        """
        guard = state.plan.guard
        if guard.max_quality_drop is None:
            return Probing()
        if not await self._store_sync.take_lease(state.id, LEASE_S):
            return None
        probes = await self.read(state.plan)
        if not probes.probes:
            return Probing(problem="Neither release has probes: its answers are not compared.")
        probing = Probing()
        try:
            async with self._opened(state, probes, Deadline.after(guard.probe_timeout_s)) as answers:
                async for probing in answers:
                    self._store_sync.own_probing = probing
                    if probing.num_asked == guard.probes_before_traffic:
                        break
        finally:
            self._store_sync.own_probing = None
        _log.info("probes answered", canary=state.plan.canary, lost=probing.lost, problem=probing.problem)
        return probing

    async def go_on(self, state: State, record: Record) -> None:
        """Ask the remaining probes while quality is open.

        Do nothing while another gateway does it.

        Args:
            state: in one of its steps.
            record: called with the answers every few seconds, and at the end.

        Raises:
            TandemError: the probes cannot be read, or the store cannot be reached.
        """
        before = state.probing
        if before is None or not is_left(before, state.plan) or state.id == self._changed_in:
            return
        if not await self._store_sync.take_lease(state.id, LEASE_S):
            return
        probes = await self.read(state.plan)
        if digest_of(probes) != before.asked_of:
            self._changed_in = state.id
            _log.warning("the files of probes changed, the others are not asked", rollout=state.id)
            return
        recorded_at_s = time.monotonic()
        async with self._opened(state, probes, Deadline.after(_DAY_S)) as answers:
            async for probing in answers:
                if time.monotonic() < recorded_at_s + RECORD_EVERY_S and is_left(probing, state.plan):
                    continue
                if not await record(probing):
                    return
                recorded_at_s = time.monotonic()

    def _read(self, plan: Plan) -> Probes:
        tags = dict.fromkeys(split_release(name)[1] for name in (plan.stable, plan.canary))
        sets = [read_release_probes(self._models.folder(tag)) for tag in tags]
        if self._file is not None:
            sets.append(read_probes_file(self._file))
        return merge_probes(sets)

    @asynccontextmanager
    async def _opened(self, state: State, probes: Probes, deadline: Deadline) -> AsyncIterator[Answers]:
        """Keep the lease while the block takes the answers."""
        async with self._renewed_lease(state.id), _opened_grader(self._grader) as grader:
            asker = ProbeAsker(self._traffic, self._exchanges, state.plan, probes.images, grader)
            async with aclosing(_answers(asker, state, probes, deadline)) as answers:
                yield answers

    @asynccontextmanager
    async def _renewed_lease(self, task: str) -> AsyncIterator[None]:
        """Renew the lease while the block runs.

        A lost lease ends nothing: another gateway then repeats the probes, and the first result counts.
        """

        async def renew() -> None:
            while not is_asked_to_stop():  # as in `StoreSync.run`
                await asyncio.sleep(LEASE_S / 3)
                try:
                    await self._store_sync.take_lease(task, LEASE_S)
                except TandemError as error:
                    _log.warning("lease of the probes not renewed", reason=error.reason)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])


def is_left(probing: Probing, plan: Plan) -> bool:
    """Return whether some probes are left that can decide."""
    return probing.remaining > 0 and is_open(probing, plan)


def digest_of(probes: Probes) -> str:
    """Return a digest of probes in any order."""
    return hashlib.sha256(b"".join(sorted(one.digest for one in probes.probes))).hexdigest()[:32]


async def _answers(asker: ProbeAsker, state: State, probes: Probes, deadline: Deadline) -> Answers:
    """Yield the answers so far after each probe.

    It ends with the probes, the deadline or a plain result. The test holds at every look. So a canary that is shown to
    be worse, or shown to be good in every slice, needs no more probes.
    """
    before, asked_of = state.probing or Probing(), digest_of(probes)
    # A file may be sorted by topic. In a mixed order, the first answers speak for all.
    mixed = sorted(probes.probes, key=lambda one: hashlib.sha256(state.id.encode() + one.digest).digest())
    pairs = PairCounter({name for probe in mixed for name in probe.slice_names}, before)
    for number in range(before.num_asked, len(mixed)):
        verdicts = await asker.ask(mixed[number], deadline)
        if verdicts is None:
            problem = f"The probes ran out of time, {number} of {len(mixed)} were asked."
            yield pairs.probing(problem, remaining=len(mixed) - number, asked_of=asked_of)
            return
        pairs.add(mixed[number].id, mixed[number].slice_names, *verdicts)
        probing = pairs.probing(asker.problem)
        is_last = number + 1 == len(mixed) or not is_open(probing, state.plan)
        yield probing if is_last else replace(probing, remaining=len(mixed) - number - 1, asked_of=asked_of)
        if is_last:
            return


@asynccontextmanager
async def _opened_grader(target: str | None) -> AsyncIterator[Grader | None]:
    grader = open_grader(target) if target is not None else None
    try:
        yield grader
    finally:
        if grader is not None:
            await grader.close()
