"""Training runs of a few steps."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition
from checkpoint.families import ResamplerModelConfig, layout
from demo.batches import BatchConfig
from demo.curve import plot, read_points
from demo.optimisers import Schedule
from demo.train import CURVE_FILE, POSITIONS, PRESETS, Run, TrainingConfig, demo_model, snapshot_name, train


def small_run(folder: Path, num_steps: int) -> TrainingConfig:
    return TrainingConfig(
        folder=folder,
        schedule=Schedule(num_steps=num_steps, num_warm_up_steps=2),
        mix=BatchConfig(num_images=2, num_conversations=2),
        num_processes=1,
        report_every=4,
        save_every=4,
        num_validation_images=1,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_model: ResamplerModelConfig, tokenizer: Tokenizer) -> Path:
    """Return the folder of a run of eight steps."""
    folder = tmp_path_factory.mktemp("run")
    train(small_run(folder, 8), small_model, tokenizer)
    return folder


def test_training_lowers_the_validation_loss(finished: Path) -> None:
    points = read_points(finished / CURVE_FILE)
    assert [point.step for point in points] == [4, 8]
    assert points[1].validation_loss < points[0].validation_loss < 6.9  # the loss of a uniform guess


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_direct_variant_learns_with_every_kind_of_positions(
    positions: str, small_direct_model: ResamplerModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    vision = {**small_direct_model.vision.model_dump(), "positions": positions}
    model = ResamplerModelConfig.model_validate({**small_direct_model.model_dump(), "vision": vision})
    train(small_run(tmp_path, 8), model, tokenizer)
    points = read_points(tmp_path / CURVE_FILE)
    assert points[1].validation_loss < points[0].validation_loss < 6.9


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_flags_choose_variant_and_positions(preset: str, positions: str) -> None:
    model = demo_model(preset, positions)
    assert model.vision.positions == positions
    assert model.num_visual_tokens == {"demo": 32, "demo-direct": 196}[preset]
    assert model.language.modality_embedding is (preset == "demo-direct")


def test_a_folder_with_a_run_of_another_model_is_refused(
    finished: Path, small_direct_model: ResamplerModelConfig, tokenizer: Tokenizer
) -> None:
    with pytest.raises(FailedPrecondition, match="has a run of another model; choose another with --folder"):
        train(small_run(finished, 8), small_direct_model, tokenizer)


def test_a_resumed_run_reaches_the_weights_of_an_uninterrupted_one(
    finished: Path, small_model: ResamplerModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    stopped = Run(small_run(tmp_path, 8), small_model, tokenizer, rank=0)
    for _ in range(4):
        stopped.advance()
    stopped.save()
    train(small_run(tmp_path, 8), small_model, tokenizer)
    ended, whole = (torch.load(folder / snapshot_name(8), weights_only=True) for folder in (tmp_path, finished))
    assert all(torch.equal(ended[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_two_processes_learn_from_the_mean_of_their_gradients(
    small_model: ResamplerModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = dataclasses.replace(small_run(tmp_path / "two", 1), num_processes=2)
    first, second = (Run(config, small_model, tokenizer, rank) for rank in range(2))
    for run in (first, second):
        with torch.autocast("cpu", torch.bfloat16):
            answers = run.learner(run.batches[run.rank])
        (answers.loss + config.attribute_weight * answers.attribute_loss).backward()
    for parameter, other in zip(first.learner.parameters(), second.learner.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        parameter.grad = (parameter.grad + other.grad) / 2
    first.optimisers.step(config.schedule.rate(0))
    train(config, small_model, tokenizer)
    found = torch.load(config.folder / snapshot_name(1), weights_only=True)
    for name, expected in first.learner.checkpoint_tensors().items():
        torch.testing.assert_close(found[name], expected.bfloat16())


def test_snapshots_contain_exactly_the_tensors_of_a_checkpoint(
    finished: Path, small_model: ResamplerModelConfig
) -> None:
    """Attribute heads and training buffers must not reach a release."""
    weights = torch.load(finished / snapshot_name(8), weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        spec.name: spec.shape for spec in layout(small_model)
    }


def test_the_curve_is_plotted_as_png(finished: Path, tmp_path: Path) -> None:
    plot(finished / CURVE_FILE, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_learning_rate_warms_up_stays_and_decays() -> None:
    schedule = Schedule(num_steps=100, peak=1.0, num_warm_up_steps=10, decay_share=0.5)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert set(rates[10:51]) == {1.0}
    assert rates[51:] == sorted(rates[51:], reverse=True)
    assert rates[99] == pytest.approx(0.02)
