"""Ask an operator's grader for verdicts: a command or a gRPC service.

A release never names a grader: its files hold only the rubric. A grader that hangs, dies or answers nonsense gives no
verdict. A grader that contradicts itself is not asked again.
"""

import asyncio
import contextlib
import json
import shlex
from collections.abc import Callable
from typing import Any, Protocol

import grpc

from chassis.channels import check_target, open_channel
from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.probes.file import Probe
from checkpoint.probes.judges import Graded
from tandem.v1 import grader_pb2, grader_pb2_grpc

SERVICE_PREFIX = "grpc://"
TIMEOUT_S = 30.0  # of one verdict
MAX_REPLY_BYTES = 64 * 1024
_NUM_ASKED_TWICE = 20  # the first answers, to find a grader that contradicts itself
_MAX_FAILURES = 3  # consecutive

Ask = Callable[[grader_pb2.GradeRequest], Any]  # returns an awaitable of the verdict


class GraderFailedError(FailedPrecondition):
    """The grader gave no verdict."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The grader {problem}.", reason="GRADER_FAILED")


class _Way(Protocol):
    async def ask(self, request: grader_pb2.GradeRequest) -> bool: ...

    async def close(self) -> None: ...


class Grader:
    """Asks for verdicts, and checks that they are consistent."""

    def __init__(self, way: _Way, *, timeout_s: float = TIMEOUT_S) -> None:
        self._way = way
        self._timeout_s = timeout_s
        self._verdicts: dict[tuple[str, str], bool] = {}  # by probe and answer: equal answers get equal verdicts
        self._num_failures = 0  # consecutive
        self._given_up = ""  # why it is not asked any more

    async def is_right(self, probe: Probe, answer: str) -> bool:
        """Return the verdict on an answer.

        Raises:
            GraderFailedError: it hangs, dies, answers nonsense or contradicts itself.
        """
        key = (probe.digest.hex(), answer)
        if key in self._verdicts:
            return self._verdicts[key]
        if self._given_up:
            raise GraderFailedError(self._given_up)
        request = _request(probe, answer)
        verdict = await self._ask(request)
        if len(self._verdicts) < _NUM_ASKED_TWICE and await self._ask(request) is not verdict:
            self._given_up = "contradicts itself"
            raise GraderFailedError(self._given_up)
        self._verdicts[key] = verdict
        return verdict

    async def close(self) -> None:
        """Close its connection."""
        await self._way.close()

    async def _ask(self, request: grader_pb2.GradeRequest) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                verdict = await self._way.ask(request)
        except (TimeoutError, GraderFailedError) as error:
            self._num_failures += 1
            failure = error if isinstance(error, GraderFailedError) else GraderFailedError("does not answer in time")
            if self._num_failures >= _MAX_FAILURES:
                self._given_up = failure.message.removeprefix("The grader ").removesuffix(".")
            raise failure from None
        self._num_failures = 0
        return verdict


def open_grader(target: str, *, timeout_s: float = TIMEOUT_S) -> Grader:
    """Return the grader that an operator named.

    Args:
        target: 'grpc://host:port' of a `tandem.v1.Grader`, or a command line. The command gets one JSON object on its
            standard input (`probe_id`, `rubric`, `turns`, `answer`) and prints one: {"right": true}.
        timeout_s: longest wait for one verdict, seconds.

    Raises:
        InvalidArgument: reason 'BAD_GRADER'.
    """
    command = check_grader(target)
    way: _Way = _CommandGrader(command) if command else _ServiceGrader(target.removeprefix(SERVICE_PREFIX))
    return Grader(way, timeout_s=timeout_s)


def check_grader(target: str) -> list[str]:
    """Return a command's words, or none for a service.

    Raises:
        InvalidArgument: reason 'BAD_GRADER', the target is neither.
    """
    try:
        if target.startswith(SERVICE_PREFIX):
            check_target(target.removeprefix(SERVICE_PREFIX))
            return []
        command = shlex.split(target)
    except ValueError:
        command = []
    if not command:
        raise InvalidArgument("The grader must be grpc://host:port or a command line.", reason="BAD_GRADER")
    return command


class _ServiceGrader:
    """A `tandem.v1.Grader`."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub: Any = grader_pb2_grpc.GraderStub(self._channel)

    async def ask(self, request: grader_pb2.GradeRequest) -> bool:
        try:
            response = await self._stub.Grade(request)
        except grpc.RpcError:
            raise GraderFailedError("cannot be reached or failed") from None
        if response.WhichOneof("verdict") != "right":
            raise GraderFailedError("gave no verdict")
        return bool(response.right)

    async def close(self) -> None:
        await self._channel.close(None)


class _CommandGrader:
    """A command that is started for each answer."""

    def __init__(self, command: list[str]) -> None:
        self._command = command

    async def ask(self, request: grader_pb2.GradeRequest) -> bool:
        turns = [{"role": turn.role, "text": turn.text} for turn in request.turns]
        fields = {"probe_id": request.probe_id, "rubric": request.rubric, "turns": turns, "answer": request.answer}
        reply = await self._run(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
        try:
            right = json.loads(reply)["right"]
        except (ValueError, KeyError, TypeError, RecursionError):
            right = None
        if not isinstance(right, bool):
            raise GraderFailedError("printed no verdict")
        return right

    async def _run(self, given: bytes) -> bytes:
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError:
            raise GraderFailedError("cannot be started") from None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(ConnectionError):  # it may ignore its input
                process.stdin.write(given)
                await process.stdin.drain()
            process.stdin.close()
            reply = await _read(process.stdout)
            if await process.wait() != 0:
                raise GraderFailedError("ended with an error")
            return reply
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def close(self) -> None:
        pass


async def _read(stream: asyncio.StreamReader) -> bytes:
    """Read a reply of limited size."""
    reply = b""
    while chunk := await stream.read(MAX_REPLY_BYTES):
        reply += chunk
        if len(reply) > MAX_REPLY_BYTES:
            raise GraderFailedError("printed too much")
    return reply


def _request(probe: Probe, answer: str) -> grader_pb2.GradeRequest:
    assert isinstance(probe.judge, Graded)
    turns = [
        grader_pb2.GradeTurn(role=message.role, text="\n".join(part for part in message.parts if isinstance(part, str)))
        for message in probe.messages
    ]
    return grader_pb2.GradeRequest(probe_id=probe.id, rubric=probe.judge.rubric, turns=turns, answer=answer)
