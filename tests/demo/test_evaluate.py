"""Evaluation and publishing of a release, without a running stack."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from checkpoint.families import ResamplerModelConfig, layout
from checkpoint.verification import raise_for_problems, verify
from checkpoint.weights import load_half
from demo.evaluate import Outcome, make_cases, report, score, table
from demo.questions import LANGUAGES, TOPICS
from demo.release import Snapshot, model_card, publish
from demo.scenes import HELD_OUT_SEEDS
from demo.train import demo_model
from language_service.model.decoder import Decoder
from vision_service.model.encoder import VisionHalf

TAG = "tandem-demo-v9.9.9"


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Return outcomes with right English and wrong Chinese answers.

    All answers about swapped images are wrong.
    """
    return [
        Outcome(
            case, tuple(turn.answer for turn in case.conversation.turns), case.conversation.language == "english", False
        )
        for case in make_cases(32, seed=0)
    ]


def test_questions_cover_all_topics_on_held_out_images() -> None:
    cases = make_cases(64, seed=3)
    assert all(case.scene_seed in HELD_OUT_SEEDS for case in cases)
    asked = [(case.conversation.language, case.conversation.topic) for case in cases]
    assert {asked.count((language, topic)) for language in LANGUAGES for topic in TOPICS} == {4}


def test_evaluations_with_different_seeds_share_no_image() -> None:
    images = [{case.scene_seed for case in make_cases(40, seed)} for seed in (0, 1, 999)]
    assert not images[0] & images[1]
    assert len(set.union(*images)) == 30


def test_the_swapped_image_is_a_different_one() -> None:
    assert all(case.image != case.other_image for case in make_cases(40, seed=0))


def test_scores_select_by_language_and_topic(outcomes: list[Outcome]) -> None:
    assert score(outcomes, "english").right == 1.0
    assert score(outcomes, "chinese", "colour").right == 0.0
    assert score(outcomes).right == 0.5
    assert score(outcomes).right_when_swapped == 0.0
    assert score(outcomes, None, "colour").questions == 4
    assert score([]).questions == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--address", "127.0.0.1:1", "--questions", "4"], 1, "Cannot reach a gateway at 127.0.0.1:1; start one with"),
        (["--seed", "1000"], 2, "argument --seed: must be 0 to 999"),  # held-out images exist for these seeds only
        (["--questions", "0"], 2, "argument --questions: must be 1 to"),
    ],
)
def test_a_failed_evaluation_prints_one_sentence_and_no_traceback(flags: list[str], code: int, words: str) -> None:
    command = [sys.executable, "-m", "demo.evaluate", *flags]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_report_includes_wrong_answers(outcomes: list[Outcome]) -> None:
    written = report(TAG, 0, outcomes)
    wrong: Any = written["wrong"]
    assert len(wrong) == 16
    assert wrong[0]["expected"] == list(wrong[0]["answered"])
    assert len(table(TAG, outcomes).rows) == len(TOPICS) + 1


def random_snapshot(model: ResamplerModelConfig, tokenizer: Tokenizer) -> Snapshot:
    weights = {spec.name: torch.randn(spec.shape) for spec in layout(model)}
    return Snapshot(model=model, weights=weights, tokenizer_json=tokenizer.to_str(), step=100)


def test_a_published_release_is_small_and_passes_verification_and_loading(
    tmp_path: Path, tokenizer: Tokenizer, outcomes: list[Outcome]
) -> None:
    snapshot = random_snapshot(demo_model(), tokenizer)
    scores = {(name, topic): score(outcomes, name, topic) for name in (*LANGUAGES, None) for topic in (*TOPICS, None)}
    folder = publish(tmp_path, TAG, snapshot, model_card(TAG, snapshot.model, 100, scores))
    raise_for_problems(TAG, verify(folder))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6
    VisionHalf(demo_model()).load_state_dict(load_half(folder, "vision", dtype=torch.float32).tensors)
    Decoder(demo_model().language).load_state_dict(load_half(folder, "language", dtype=torch.float32).tensors)
    assert "| **all** | 100.0% | 0.0% | 0.0% | 0.0% | 50.0% | 0.0% |" in (folder / "README.md").read_text()


def test_the_card_of_a_direct_release_describes_no_resampler(outcomes: list[Outcome]) -> None:
    scores = {(name, topic): score(outcomes, name, topic) for name in (*LANGUAGES, None) for topic in (*TOPICS, None)}
    card = model_card(TAG, demo_model("demo-direct"), 100, scores)
    assert "196 patches, each a visual token." in card
    assert "resampler" not in card
