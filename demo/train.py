"""Train the demo model on CPU cores (`make train-demo`).

    python -m demo.train
    python -m demo.train --preset demo-direct --positions sincos_2d --steps 500

Runs are seeded and restartable. A step's images depend only on its number, and the state is saved regularly. So a
stopped run continues to exactly the weights it would have reached.

Training uses one process per core, each with its share of the images. On a busy machine, two threads of one process
would wait for each other at every operation.
"""

import argparse
import os
import socket
import time
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import distributed
from torch.multiprocessing.spawn import spawn

from chassis.errors import FailedPrecondition
from checkpoint.config import CONFIG_FILE, read_config, write_config
from checkpoint.families import ResamplerModelConfig
from checkpoint.presets import RESAMPLER_PRESETS
from demo.batches import Batch, BatchConfig, Batches
from demo.curve import Point, plot, write_points
from demo.learner import Answers, Learner
from demo.optimisers import Optimisers, Schedule
from demo.scenes import TRAINING_SEEDS, VALIDATION_SEEDS
from demo.tokenizer import train_tokenizer
from tandem.commands.failures import exit_on_error

STATE_FILE = "state.pt"
CURVE_FILE = "curve.json"
TOKENIZER_FILE = "tokenizer.json"
DEFAULT_FOLDER = Path(".tandem/training")
PRESETS = ("demo", "demo-direct")
POSITIONS = ("learned", "sincos_1d", "sincos_2d")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Settings of a training run."""

    folder: Path  # for state, snapshots and curve
    schedule: Schedule
    mix: BatchConfig  # per process
    num_processes: int = 2
    attribute_weight: float = 1.0  # weight of the attribute heads' loss. The loss of the answers has weight 1.
    report_every: int = 25  # steps between measurements on the validation images
    save_every: int = 100  # steps
    num_validation_images: int = 32
    seed: int = 0


class Run:
    """One process's share of a run."""

    def __init__(self, config: TrainingConfig, model: ResamplerModelConfig, tokenizer: Tokenizer, rank: int) -> None:
        """Start a new run or continue from the saved state."""
        self.config = config
        self.rank = rank
        self.step = 0
        self.points: list[Point] = []
        self.cpu_s = 0.0  # of this process, up to the current step
        torch.manual_seed(config.seed)
        self.batches = Batches(model, tokenizer, config.mix, TRAINING_SEEDS)
        self.learner = Learner(model, self.batches.encoder.before_image)
        self.optimisers = Optimisers(self.learner)
        validation = BatchConfig(num_images=config.num_validation_images, num_conversations=16)
        self.validation = Batches(model, tokenizer, validation, VALIDATION_SEEDS)[0]
        if (config.folder / STATE_FILE).exists():
            self._restore()

    def advance(self) -> float:
        """Take one step and return this process's loss."""
        start_s = time.process_time()
        batch = self.batches[self.step * self.config.num_processes + self.rank]
        answers = self._answer(batch)
        (answers.loss + self.config.attribute_weight * answers.attribute_loss).backward()  # type: ignore[no-untyped-call]
        self._share_gradients()
        self.optimisers.step(self.config.schedule.rate(self.step))
        self.step += 1
        self.cpu_s += time.process_time() - start_s
        return answers.loss.item()

    def report(self, loss: float) -> Point:
        """Measure the model on validation images and extend the curve."""
        with torch.no_grad():
            answers = self._answer(self.validation)
        right = torch.cat(answers.right).float().mean().item()
        point = Point(
            step=self.step,
            loss=loss,
            validation_loss=answers.loss.item(),
            validation_attribute_loss=answers.attribute_loss.item(),
            validation_accuracy=right,
            cpu_s=round(self.cpu_s, 1),
        )
        self.points.append(point)
        write_points(self.points, self.config.folder / CURVE_FILE)
        return point

    def save(self) -> None:
        """Save the state atomically, and a snapshot of the weights."""
        folder = self.config.folder
        state = {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "optimisers": self.optimisers.state(),
            "points": self.points,
            "cpu_s": self.cpu_s,
        }
        torch.save(state, folder / f"{STATE_FILE}.new")
        (folder / f"{STATE_FILE}.new").replace(folder / STATE_FILE)
        weights = {name: tensor.bfloat16() for name, tensor in self.learner.checkpoint_tensors().items()}
        torch.save(weights, folder / snapshot_name(self.step))

    def _restore(self) -> None:
        # We wrote this file ourselves. The safe loader would refuse the curve's points, which are objects.
        state: dict[str, Any] = torch.load(self.config.folder / STATE_FILE, weights_only=False)
        self.step, self.points, self.cpu_s = state["step"], state["points"], state["cpu_s"]
        self.learner.load_state_dict(state["learner"])
        self.optimisers.restore(state["optimisers"])

    def _answer(self, batch: Batch) -> Answers:
        with torch.autocast("cpu", torch.bfloat16):
            answers: Answers = self.learner(batch)
        return answers

    def _share_gradients(self) -> None:
        """Replace every process's gradients by their mean."""
        if self.config.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in self.learner.parameters() if parameter.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(together)
        together /= self.config.num_processes
        for gradient, mean in zip(gradients, torch.split(together, [one.numel() for one in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def snapshot_name(step: int) -> str:
    """Return the file name of a step's weights."""
    return f"weights-{step:05d}.pt"


def demo_model(preset: str = "demo", positions: str = "learned") -> ResamplerModelConfig:
    """Return the configuration of a variant of the demo model.

    Args:
        preset: one of `PRESETS`.
        positions: kind of the patches' positions, one of `POSITIONS`.
    """
    model = RESAMPLER_PRESETS[preset].model_dump()
    return ResamplerModelConfig.model_validate({**model, "vision": {**model["vision"], "positions": positions}})


def train(config: TrainingConfig, model: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
    """Train to the end of the schedule, from saved state.

    Raises:
        FailedPrecondition: OTHER_MODEL, the folder has a run of another model.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    if (config.folder / CONFIG_FILE).exists() and read_config(config.folder) != model:
        raise FailedPrecondition(
            f"The folder {config.folder} has a run of another model; choose another with --folder.",
            reason="OTHER_MODEL",
        )
    write_config(model, config.folder)
    tokenizer_json = tokenizer.to_str(pretty=True)
    (config.folder / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
    if config.num_processes == 1:
        _work(0, config, model, tokenizer_json, 0)
    else:
        arguments = (config, model, tokenizer_json, _free_port())
        spawn(_work, arguments, nprocs=config.num_processes)  # type: ignore[no-untyped-call]
    plot(config.folder / CURVE_FILE, config.folder / "curve.png")


def _work(rank: int, config: TrainingConfig, model: ResamplerModelConfig, tokenizer_json: str, port: int) -> None:
    torch.set_num_threads(1)
    if config.num_processes > 1:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=config.num_processes)
    run = Run(config, model, Tokenizer.from_str(tokenizer_json), rank)
    with _progress(shown=rank == 0) as progress:
        bar = progress.add_task("training", total=config.schedule.num_steps, completed=run.step)
        while run.step < config.schedule.num_steps and not _orphaned():
            loss = run.advance()
            progress.update(bar, completed=run.step)
            last = run.step == config.schedule.num_steps
            if rank == 0 and (last or run.step % config.report_every == 0):
                progress.console.print(run.report(loss))
            if rank == 0 and (last or run.step % config.save_every == 0):
                run.save()
    if config.num_processes > 1:
        distributed.destroy_process_group()


def _orphaned() -> bool:
    """Whether the parent process has died."""
    parent = parent_process()
    return parent is not None and not parent.is_alive()


def _progress(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not shown,
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description="Train the demo model.")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0], help="variant to train (default: %(default)s)")
    parser.add_argument(
        "--positions", choices=POSITIONS, default=POSITIONS[0], help="positions of the patches (default: %(default)s)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=DEFAULT_FOLDER,
        help="folder for state, snapshots and curve, one for each model (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=3000, help="length of the run (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="worker processes (default: %(default)s)"
    )
    arguments = parser.parse_args()
    # Large pages: without them, allocating and freeing memory at every operation costs more than computing.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    config = TrainingConfig(
        folder=arguments.folder,
        schedule=Schedule(num_steps=arguments.steps),
        mix=BatchConfig(),
        num_processes=arguments.processes,
    )
    with exit_on_error():
        train(config, demo_model(arguments.preset, arguments.positions), train_tokenizer())


if __name__ == "__main__":
    main()
