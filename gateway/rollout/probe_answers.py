"""Let both releases answer a probe, and judge the answers.

Each answer takes the way of a user's: template, tokenizer, encoder, decoder, filters. Only admission is left out. The
releases answer one probe at the same time, so at most two answers are in flight. They run before waiting users'
requests, so live traffic cannot starve them, and in the background of the decoder, so they hardly slow it down.
"""

import asyncio

import structlog
from prometheus_client import Counter

from chassis.cancellation import is_asked_to_stop
from chassis.deadline import Deadline
from chassis.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, TandemError, Unavailable
from checkpoint.probes import Graded, Grader, Probe
from gateway.admission import Tenant
from gateway.answer import ExchangeBuilder, Report
from gateway.rollout.policy import Plan, ProbeVerdict
from gateway.rollout.traffic import Traffic
from tandem.v1 import gateway_pb2, sampling_pb2

PROBE_ANSWERS = Counter(
    "tandem_rollout_probe_answers", "Answers to probes, by release and verdict.", ["release", "verdict"]
)

_ANSWER_TIMEOUT_S = 60.0  # a release that takes longer for one answer is as good as wrong
_RETRY_S = 0.25
_PRIORITY = 1  # before requests that wait
_TENANT = Tenant(name="probes", cache_group="tandem probes")
_ROLES = {
    "system": gateway_pb2.ROLE_SYSTEM,
    "user": gateway_pb2.ROLE_USER,
    "assistant": gateway_pb2.ROLE_ASSISTANT,
}

_log = structlog.get_logger()


class ProbeAsker:
    """Asks both releases probes. For one event loop."""

    def __init__(
        self,
        traffic: Traffic,
        exchanges: ExchangeBuilder,
        plan: Plan,
        images: dict[bytes, bytes],
        grader: Grader | None,
    ) -> None:
        """Ask nothing yet.

        Args:
            traffic: opens the releases.
            exchanges: builds the requests.
            plan: names the releases.
            images: files by SHA-256, of all probes.
            grader: judges answers to probes with the judge `grader`.
        """
        self._traffic = traffic
        self._exchanges = exchanges
        self._plan = plan
        self._images = images
        self._grader = grader
        self.problem = ""  # the last reason of a missing verdict

    async def ask(self, probe: Probe, deadline: Deadline) -> tuple[ProbeVerdict, ProbeVerdict] | None:
        """Return the verdicts on stable's and the canary's answer.

        None if the deadline passes before both have answered.
        """
        stable, canary = self._plan.stable, self._plan.canary
        verdicts = await asyncio.gather(self._verdict(probe, stable, deadline), self._verdict(probe, canary, deadline))
        if verdicts[0] is None or verdicts[1] is None:
            return None
        PROBE_ANSWERS.labels(stable, verdicts[0]).inc()
        PROBE_ANSWERS.labels(canary, verdicts[1]).inc()
        return verdicts[0], verdicts[1]

    async def _verdict(self, probe: Probe, name: str, deadline: Deadline) -> ProbeVerdict | None:
        """Return the verdict on a release's answer."""
        try:
            answer = await self._answer(probe, name, deadline)
        except DeadlineExceeded:
            return None
        if answer is None:
            return "wrong"
        if not isinstance(probe.judge, Graded):
            return "right" if probe.judge.is_right(answer) else "wrong"
        try:
            return "right" if await self._graded(probe, answer) else "wrong"
        except FailedPrecondition as error:
            self.problem = error.message
            return "unjudged"

    async def _graded(self, probe: Probe, answer: str) -> bool:
        if self._grader is None:
            raise FailedPrecondition("The gateway has no grader.", reason="GRADER_FAILED")
        return await self._grader.is_right(probe, answer)

    async def _answer(self, probe: Probe, name: str, deadline: Deadline) -> str | None:
        """Return a release's answer, or None if it failed.

        While the release has no room, it is asked again.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        while deadline.remaining_s() > 0:
            if is_asked_to_stop():  # the stop can end a call as if the stage had failed
                raise asyncio.CancelledError
            try:
                async with asyncio.timeout(min(_ANSWER_TIMEOUT_S, deadline.remaining_s())):
                    return await self._run(probe, name, deadline)
            except (ResourceExhausted, Unavailable):
                await asyncio.sleep(_RETRY_S)
            except TimeoutError:
                if deadline.remaining_s() > 0:
                    return None
            except DeadlineExceeded:
                pass  # of a stage, which has the same deadline
            except TandemError as error:
                _log.warning("probe failed", probe=probe.id, release=name, reason=error.reason)
                return None
        raise DeadlineExceeded("The time for the probes is over.")

    async def _run(self, probe: Probe, name: str, deadline: Deadline) -> str:
        texts: list[str] = []

        async def keep(response: gateway_pb2.GatewayGenerateResponse) -> None:
            texts.append(response.delta.text)

        async with self._traffic.keep_open(name) as release:
            exchange = await self._exchanges.build(
                probe_request(probe, self._images),
                release,
                _TENANT,
                deadline=deadline,
                report=Report(is_mirrored=True, is_background=True),
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
