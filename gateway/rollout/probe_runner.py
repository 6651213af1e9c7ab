"""Let both releases answer the probes before a canary gets traffic.

Each answer takes the way of a user's: template, tokenizer, encoder, decoder, filters. Only admission is left out. The
releases answer one probe at the same time, so at most two answers are in flight. They run before waiting users'
requests, so live traffic cannot starve them. One of several gateways does it, by a lease in the store.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from prometheus_client import Counter

from chassis.cancellation import is_asked_to_stop
from chassis.deadline import Deadline
from chassis.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, TandemError, Unavailable
from checkpoint.probes import Graded, Grader, Probe, Probes, merge_probes, open_grader, read_probes_file
from checkpoint.release_probes import read_release_probes
from checkpoint.store import ModelStore
from checkpoint.tags import split_release
from gateway.admission import Tenant
from gateway.answer import ExchangeBuilder, Report
from gateway.rollout.policy import (
    PairCounter,
    Plan,
    ProbeVerdict,
    Probing,
    State,
    Verdict,
    first_beyond,
    judge_probes,
)
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic
from tandem.v1 import gateway_pb2, sampling_pb2

PROBE_ANSWERS = Counter(
    "tandem_rollout_probe_answers", "Answers to probes, by release and verdict.", ["release", "verdict"]
)

LEASE_S = 10.0  # a gateway that dies loses the probes to another after this time
_ANSWER_TIMEOUT_S = 60.0  # a release that takes longer for one answer is as good as wrong
_RETRY_S = 0.25
_PRIORITY = 1  # before requests that wait. Two answers at once take little from them
_TENANT = Tenant(name="probes", cache_salt="tandem probes")
_ROLES = {
    "system": gateway_pb2.ROLE_SYSTEM,
    "user": gateway_pb2.ROLE_USER,
    "assistant": gateway_pb2.ROLE_ASSISTANT,
}

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

    async def read(self, plan: Plan) -> Probes:
        """Return the probes of both releases and of the operator.

        Raises:
            TandemError: a file is not valid. The message says why.
        """
        return await asyncio.to_thread(self._read, plan)

    async def run(self, state: State) -> Probing | None:
        """Return the result of the probes.

        None while another gateway runs them. An empty result means that there are none.

        Raises:
            TandemError: the probes cannot be read, or the store cannot be reached.
        """
        if state.plan.guard.max_quality_drop is None:
            return Probing()
        if not await self._store_sync.take_lease(state.id, LEASE_S):
            return None
        probes = await self.read(state.plan)
        if not probes.probes:
            return Probing(problem="Neither release has probes: its answers are not compared.")
        try:
            async with self._renewed_lease(state.id), _opened_grader(self._grader) as grader:
                return await _Run(self._traffic, self._exchanges, self._store_sync, state, probes, grader).run()
        finally:
            self._store_sync.own_probing = None

    def _read(self, plan: Plan) -> Probes:
        tags = dict.fromkeys(split_release(name)[1] for name in (plan.stable, plan.canary))
        sets = [read_release_probes(self._models.folder(tag)) for tag in tags]
        if self._file is not None:
            sets.append(read_probes_file(self._file))
        return merge_probes(sets)

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


class _Run:
    """One run of all probes."""

    def __init__(
        self,
        traffic: Traffic,
        exchanges: ExchangeBuilder,
        store_sync: StoreSync,
        state: State,
        probes: Probes,
        grader: Grader | None,
    ) -> None:
        self._traffic = traffic
        self._exchanges = exchanges
        self._store_sync = store_sync
        self._plan = state.plan
        self._images = probes.images
        # A file may be sorted by topic. In a mixed order, the first answers speak for all.
        self._probes = sorted(probes.probes, key=lambda one: hashlib.sha256(state.id.encode() + one.digest).digest())
        self._grader = grader
        self._deadline = Deadline.after(state.plan.guard.probe_timeout_s)
        self._problem = ""  # why verdicts are missing

    async def run(self) -> Probing:
        """Answer probes until the end, timeout or a plain result.

        The test holds at every look. So a canary that is shown to be worse, or shown to be good in every slice, needs
        no more probes.
        """
        pairs = PairCounter()
        for number, probe in enumerate(self._probes):
            if self._deadline.remaining_s() <= 0:  # the order is mixed, so those before speak for all
                self._problem = f"The probes ran out of time, {number} of {len(self._probes)} were asked."
                break
            stable, canary = await asyncio.gather(
                self._judged(probe, self._plan.stable), self._judged(probe, self._plan.canary)
            )
            pairs.add(probe.id, probe.slice_names, stable, canary)
            probing = pairs.probing(self._problem)
            self._store_sync.own_probing = probing
            findings = judge_probes(probing, self._plan)
            if first_beyond(findings) is not None or all(one.verdict is Verdict.WITHIN for one in findings):
                break
        result = pairs.probing(self._problem)
        _log.info("probes answered", canary=self._plan.canary, lost=result.lost, problem=self._problem)
        return result

    async def _judged(self, probe: Probe, name: str) -> ProbeVerdict:
        verdict = await self._verdict(probe, name)
        PROBE_ANSWERS.labels(name, verdict).inc()
        return verdict

    async def _verdict(self, probe: Probe, name: str) -> ProbeVerdict:
        """Return the verdict on a release's answer."""
        try:
            answer = await self._answer(probe, name)
        except DeadlineExceeded:
            self._problem = "The probes ran out of time."
            return "unjudged"
        if answer is None:
            return "wrong"
        if not isinstance(probe.judge, Graded):
            return "right" if probe.judge.is_right(answer) else "wrong"
        try:
            return "right" if await self._graded(probe, answer) else "wrong"
        except FailedPrecondition as error:
            self._problem = error.message
            return "unjudged"

    async def _graded(self, probe: Probe, answer: str) -> bool:
        if self._grader is None:
            raise FailedPrecondition("The gateway has no grader.", reason="GRADER_FAILED")
        return await self._grader.is_right(probe, answer)

    async def _answer(self, probe: Probe, name: str) -> str | None:
        """Return a release's answer, or None if it failed.

        While the release has no room, it is asked again.

        Raises:
            DeadlineExceeded: the time for all probes is over.
        """
        while self._deadline.remaining_s() > 0:
            if is_asked_to_stop():  # the stop can end a call as if the stage had failed
                raise asyncio.CancelledError
            try:
                async with asyncio.timeout(min(_ANSWER_TIMEOUT_S, self._deadline.remaining_s())):
                    return await self._ask(probe, name)
            except (ResourceExhausted, Unavailable):
                await asyncio.sleep(_RETRY_S)
            except TimeoutError:
                if self._deadline.remaining_s() > 0:
                    return None
            except DeadlineExceeded:
                pass  # of a stage, which has the same deadline
            except TandemError as error:
                _log.warning("probe failed", probe=probe.id, release=name, reason=error.reason)
                return None
        raise DeadlineExceeded("The time for the probes is over.")

    async def _ask(self, probe: Probe, name: str) -> str:
        texts: list[str] = []

        async def keep(response: gateway_pb2.GatewayGenerateResponse) -> None:
            texts.append(response.delta.text)

        async with self._traffic.keep_open(name) as release:
            exchange = await self._exchanges.build(
                probe_request(probe, self._images),
                release,
                _TENANT,
                deadline=self._deadline,
                report=Report(is_mirrored=True),
                priority=_PRIORITY,
            )
            await exchange.run(keep)
        return "".join(texts)


def probe_request(probe: Probe, images: dict[bytes, bytes]) -> gateway_pb2.GatewayGenerateRequest:
    """Return the request of a probe, decoded greedily."""
    messages = [
        gateway_pb2.Message(
            role=_ROLES[message.role],
            parts=[
                gateway_pb2.Part(text=part)
                if isinstance(part, str)
                else gateway_pb2.Part(image=gateway_pb2.Image(data=images[part]))
                for part in message.parts
            ],
        )
        for message in probe.messages
    ]
    sampling = sampling_pb2.SamplingOptions(temperature=0, max_tokens=probe.max_tokens)
    return gateway_pb2.GatewayGenerateRequest(messages=messages, sampling=sampling)


@asynccontextmanager
async def _opened_grader(target: str | None) -> AsyncIterator[Grader | None]:
    grader = open_grader(target) if target is not None else None
    try:
        yield grader
    finally:
        if grader is not None:
            await grader.close()
