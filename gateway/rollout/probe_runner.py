"""Ask the probes: before a canary gets traffic, then in the steps.

One of several gateways does it, by a lease in the store.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from chassis.cancellation import is_asked_to_stop
from chassis.changing_files import identity_of
from chassis.deadline import Deadline
from chassis.errors import TandemError
from checkpoint.manifest import MANIFEST_FILE
from checkpoint.probes import Grader, Probe, Probes, merge_probes, open_grader, read_probes_file
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
_NAME_LENGTH = 4  # characters, see `_short_name`

Answers = AsyncGenerator[Probing, None]
Files = tuple[tuple[int, int, int] | None, ...]  # changes with the content of some files
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
        self._exhausted: tuple[str, Files] | None = None  # a rollout, and files whose probes are all asked in it

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
                    self._store_sync.own_probing = replace(probing, asked="")  # other gateways only show it
                    if probing.num_asked == guard.probes_before_traffic:
                        break
        finally:
            self._store_sync.own_probing = None
        _log.info("probes answered", canary=state.plan.canary, lost=probing.lost, problem=probing.problem)
        return probing

    async def go_on(self, state: State, record: Record) -> None:
        """Ask the remaining probes while quality is open.

        Probes that were added to the files are asked, too. Do nothing while another gateway does it.

        Args:
            state: in one of its steps.
            record: called with the answers every few seconds, and at the end.

        Raises:
            TandemError: the probes cannot be read, or the store cannot be reached.
        """
        if not can_change(state):
            return
        files = await asyncio.to_thread(self._files, state.plan)
        if self._exhausted == (state.id, files) or not await self._store_sync.take_lease(state.id, LEASE_S):
            return
        probes = await self.read(state.plan)
        if not not_asked(probes, state):
            self._exhausted = (state.id, files)
            return
        recorded_at_s = time.monotonic()
        async with self._opened(state, probes, Deadline.after(_DAY_S)) as answers:
            async for probing in answers:
                if time.monotonic() < recorded_at_s + RECORD_EVERY_S and probing.remaining:
                    continue
                if not await record(probing):
                    return
                recorded_at_s = time.monotonic()

    def _files(self, plan: Plan) -> Files:
        """Return what changes with the files of probes."""
        manifests = [folder / MANIFEST_FILE for folder in self._folders(plan)]  # they have the digests of all others
        return tuple(map(identity_of, [*manifests, *filter(None, [self._file])]))

    def _folders(self, plan: Plan) -> list[Path]:
        tags = dict.fromkeys(split_release(name)[1] for name in (plan.stable, plan.canary))
        return [self._models.folder(tag) for tag in tags]

    def _read(self, plan: Plan) -> Probes:
        sets = [read_release_probes(folder) for folder in self._folders(plan)]
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


def can_change(state: State) -> bool:
    """Return whether further probes can change the verdict."""
    probing = state.probing
    if probing is None or state.plan.guard.max_quality_drop is None:
        return False
    return not probing.counts or is_open(probing, state.plan)


def not_asked(probes: Probes, state: State) -> list[Probe]:
    """Return the probes that a rollout has not asked yet.

    They are in a mixed order, so the first answers speak for all. A file may be sorted by topic.
    """
    names = state.probing.asked if state.probing is not None else ""
    asked = {names[start : start + _NAME_LENGTH] for start in range(0, len(names), _NAME_LENGTH)}
    left = (probe for probe in probes.probes if _short_name(probe) not in asked)
    return sorted(left, key=lambda one: hashlib.sha256(state.id.encode() + one.digest).digest())


def _short_name(probe: Probe) -> str:
    """Return an asked probe's name in the state.

    It is short, because a state can have thousands. Of 1,000 probes about 0.03 share the name of another one, and only
    one of the two is asked.
    """
    return base64.b64encode(probe.digest[:3]).decode()


async def _answers(asker: ProbeAsker, state: State, probes: Probes, deadline: Deadline) -> Answers:
    """Yield the answers so far after each probe.

    It ends with the probes, the deadline or a plain result. The test holds at every look. So a canary that is shown to
    be worse, or shown to be good in every slice, needs no more probes.
    """
    before, left = state.probing or Probing(), not_asked(probes, state)
    pairs, asked = PairCounter({name for probe in left for name in probe.slice_names}, before), before.asked
    for number, probe in enumerate(left):
        verdicts = await asker.ask(probe, deadline)
        if verdicts is None:
            problem = f"The probes ran out of time, {number} of {len(left)} were asked."
            yield pairs.probing(problem, remaining=len(left) - number, asked=asked)
            return
        pairs.add(probe.id, probe.slice_names, *verdicts)
        asked += _short_name(probe)
        probing = pairs.probing(asker.problem, asked=asked)
        is_last = number + 1 == len(left) or not is_open(probing, state.plan)
        yield probing if is_last else replace(probing, remaining=len(left) - number - 1)
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
