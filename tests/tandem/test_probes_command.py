"""`tandem probes` against a real stack."""

import json
from functools import partial
from pathlib import Path

import pytest

from checkpoint.probes import Judged, Verdict, Verdicts
from tandem.commands.probe_answers import compare
from tandem.stack.stack import Stack
from tests.checkpoint.probes.files import probe, probe_line
from tests.tandem import in_process

TAG = "tiny-v1.0.0"


run = partial(in_process.run, "probes")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return probes of which the tiny model answers one."""
    lines = [
        probe_line("anything", judge={"regex": "(?s)^.*$"}, slices={"topic": "kind"}, max_tokens=4),
        probe_line(
            "impossible", judge={"exact": "No random weights say this."}, slices={"topic": "kind"}, max_tokens=4
        ),
        probe_line("graded", judge={"grader": "Is it polite?"}, max_tokens=4),
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return tmp_path / "mine.jsonl"


def test_check_counts_probes_by_slice(file: Path) -> None:
    facts = json.loads(run("check", str(file), "--json").stdout)
    assert facts == {
        "probes": 3,
        "images": 0,
        "judges": {"regex": 1, "exact": 1, "graded": 1},
        "slices": {"topic=kind": 2},
    }
    assert "topic=kind" in run("check", str(file)).stdout


def test_a_bad_file_is_one_sentence_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(probe_line(judge={"similar": "a"}))
    done = run("check", str(tmp_path / "bad.jsonl"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Line 1 of the probes is not valid: the judge must be one of exact")
    assert done.stderr.count("\n") == 1


def test_run_shows_slices_and_wrong_answers(stack: Stack, file: Path) -> None:
    done = run("run", "--release", TAG, "--file", str(file), address=stack.address)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["topic=kind", "1", "1", "0", "50.0", "%"] in rows
    assert ["all", "1", "1", "1", "50.0", "%"] in rows
    assert any(row[:2] == ["impossible", "wrong"] for row in rows)
    assert any(row[:2] == ["graded", "unjudged"] for row in rows)


def test_run_against_a_release_has_the_paired_difference(stack: Stack, file: Path) -> None:
    done = run("run", "--release", TAG, "--against", TAG, "--file", str(file), "--json", address=stack.address)
    against = json.loads(done.stdout)["against"]
    assert (against["judged"], against["lost"], against["gained"]) == (2, 0, 0)
    assert against["drop_low"] == -against["drop_high"]


def test_a_release_without_probes_is_an_error(stack: Stack, store: Path) -> None:
    done = run("run", "--release", TAG, "--models", str(store), address=stack.address)
    assert done.returncode == 1
    assert "has no probes" in done.stderr


def test_a_difference_is_paired_by_content() -> None:
    asked = [probe(id=f"p{number}", max_tokens=1 + number) for number in range(100)]

    def verdicts(right: int) -> Verdicts:
        values: list[Verdict] = ["right" if number < right else "wrong" for number in range(100)]
        return Verdicts(Judged(one, "", verdict) for one, verdict in zip(asked, values, strict=True))

    difference = compare(verdicts(99), verdicts(60))
    assert (difference.count.lost, difference.count.gained) == (39, 0)
    assert difference.low < 0.39 < difference.high
    assert difference.lost[0] == "p60"
