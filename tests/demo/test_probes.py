"""The probes of the demo's releases."""

import itertools
import json
from pathlib import Path

import pytest

from checkpoint.release_probes import read_release_probes
from demo.probes import NUM_PROBES, probe_lines
from demo.questions import LANGUAGES, TOPICS
from demo.scenes import HELD_OUT_SEEDS, PROBE_SEEDS, TRAINING_SEEDS, VALIDATION_SEEDS

MODELS = Path(__file__).parents[2] / "models"
TAGS = ("tandem-demo-v1.0.0", "tandem-demo-v1.1.0")


def questions(lines: list[str]) -> list[str]:
    """Return probes without images, whose bytes depend on Pillow."""
    kept = [json.loads(line) for line in lines]
    for probe in kept:
        for message in probe.get("messages", []):
            for part in message["content"] if isinstance(message["content"], list) else []:
                part.pop("sha256", None)
    return [json.dumps(probe, ensure_ascii=False) for probe in kept if "image" not in probe]


@pytest.mark.parametrize("tag", TAGS)
def test_the_releases_carry_the_probes_that_the_script_writes(tag: str) -> None:
    stored = (MODELS / tag / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    written = list(probe_lines(40))
    assert questions(stored)[:40] == questions(written)
    assert len(questions(stored)) == NUM_PROBES


@pytest.mark.parametrize("tag", TAGS)
def test_both_languages_and_all_topics_have_equally_many(tag: str) -> None:
    probes = read_release_probes(MODELS / tag).probes
    pairs = [(probe.slices["language"], probe.slices["topic"]) for probe in probes]
    assert {pairs.count((language, topic)) for language in LANGUAGES for topic in TOPICS} == {25}
    assert sum(path.stat().st_size for path in (MODELS / tag).glob("probe*")) < 1_000_000


def test_their_images_are_in_no_other_set() -> None:
    ranges = (TRAINING_SEEDS, VALIDATION_SEEDS, HELD_OUT_SEEDS, PROBE_SEEDS)
    bounds = sorted((one.start, one.stop) for one in ranges)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(bounds))
