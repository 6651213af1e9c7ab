"""Graders: real commands, a real service, and how they fail."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.probes import open_grader
from tandem.v1 import grader_pb2, grader_pb2_grpc
from tests.checkpoint.probes.files import probe

PROBE = probe(judge={"grader": "Is it polite?"})


def command(tmp_path: Path, body: str) -> str:
    """Return the command line of a grader in Python."""
    (tmp_path / "grader.py").write_text(f"import json, sys, time\nasked = json.loads(sys.stdin.readline())\n{body}\n")
    return f"{sys.executable} -S {tmp_path / 'grader.py'}"


async def verdict_of(target: str, answer: str = "Please.", timeout_s: float = 30) -> bool:
    grader = open_grader(target, timeout_s=timeout_s)
    try:
        return await grader.is_right(PROBE, answer)
    finally:
        await grader.close()


async def test_a_command_gets_the_answer_and_prints_its_verdict(tmp_path: Path) -> None:
    target = command(
        tmp_path,
        f"open({str(tmp_path / 'asked')!r}, 'w').write(json.dumps(asked))\n"
        "print(json.dumps({'right': 'Please' in asked['answer']}))",
    )
    assert await verdict_of(target)
    assert not await verdict_of(target, "No.")
    assert json.loads((tmp_path / "asked").read_text()) == {
        "probe_id": "one",
        "rubric": "Is it polite?",
        "turns": [{"role": "user", "text": "What is it?"}],
        "answer": "No.",
    }


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("time.sleep(60)", "does not answer in time"),
        ("sys.exit(3)", "ended with an error"),
        ("print('perhaps')", "printed no verdict"),
        ("print('{\"right\": 1}')", "printed no verdict"),
        ("print('[' * 60000)", "printed no verdict"),
        ("print()", "printed no verdict"),
        ("print('x' * 1000000)", "printed too much"),
        ("print(json.dumps({'right': time.time_ns() % 2 == 0 if False else not asked.get('x', False)}))", ""),
    ],
)
async def test_a_command_without_a_verdict_is_a_typed_error(tmp_path: Path, body: str, words: str) -> None:
    if not words:
        assert await verdict_of(command(tmp_path, body))  # the frame itself works
        return
    with pytest.raises(FailedPrecondition, match=words) as raised:
        await verdict_of(command(tmp_path, body), timeout_s=2 if "sleep" in body else 30)
    assert raised.value.reason == "GRADER_FAILED"


async def test_a_missing_command_is_a_typed_error() -> None:
    with pytest.raises(FailedPrecondition, match="cannot be started"):
        await verdict_of("/nonexistent/grader")


async def test_a_grader_that_contradicts_itself_is_not_asked_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    target = command(
        tmp_path,
        f"from pathlib import Path\nfile = Path({str(count)!r})\n"
        "number = int(file.read_text()) + 1 if file.exists() else 1\nfile.write_text(str(number))\n"
        "print(json.dumps({'right': number % 2 == 0}))",
    )
    grader = open_grader(target)
    for answer in ("Please.", "Thank you."):
        with pytest.raises(FailedPrecondition, match="contradicts itself"):
            await grader.is_right(PROBE, answer)
    assert count.read_text() == "2"


async def test_a_dead_grader_is_given_up_and_equal_answers_are_asked_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    target = command(tmp_path, f"open({str(count)!r}, 'a').write('x')\nsys.exit(1)")
    grader = open_grader(target)
    for number in range(10):
        with pytest.raises(FailedPrecondition, match="ended with an error"):
            await grader.is_right(PROBE, f"Answer {number}.")
    assert count.read_text() == "xxx"


@pytest.mark.parametrize("target", ["", "grpc://", "grpc://no-port", "'unclosed"])
def test_a_target_that_is_no_grader_is_refused(target: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        open_grader(target)
    assert raised.value.reason == "BAD_GRADER"


class Judge(grader_pb2_grpc.GraderServicer):
    """A grader of politeness."""

    async def Grade(  # noqa: N802
        self, request: grader_pb2.GradeRequest, context: Any
    ) -> grader_pb2.GradeResponse:
        if "hang" in request.answer:
            await asyncio.Event().wait()
        if "die" in request.answer:
            await context.abort(grpc.StatusCode.INTERNAL, "It died.")
        if "pass" in request.answer:
            return grader_pb2.GradeResponse(problem="No opinion.")
        return grader_pb2.GradeResponse(right="Please" in request.answer)


@pytest.fixture
async def service() -> AsyncIterator[str]:
    server = grpc.aio.server()
    grader_pb2_grpc.add_GraderServicer_to_server(Judge(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"grpc://127.0.0.1:{port}"
    await server.stop(0)


async def test_a_service_gives_verdicts(service: str) -> None:
    assert await verdict_of(service)
    assert not await verdict_of(service, "No.")


@pytest.mark.parametrize(
    ("answer", "words"), [("hang", "in time"), ("die", "cannot be reached or failed"), ("pass", "gave no verdict")]
)
async def test_a_service_without_a_verdict_is_a_typed_error(service: str, answer: str, words: str) -> None:
    with pytest.raises(FailedPrecondition, match=words) as raised:
        await verdict_of(service, answer, timeout_s=2)
    assert raised.value.reason == "GRADER_FAILED"


async def test_an_absent_service_is_a_typed_error() -> None:
    with pytest.raises(FailedPrecondition, match="cannot be reached or failed"):
        await verdict_of("grpc://127.0.0.1:1", timeout_s=20)
