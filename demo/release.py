"""Publish a training snapshot as a release.

    python -m demo.release --tag tandem-demo-v1.1.0 --step 2400

The script first measures the snapshot through a running stack, from the same files that it then publishes. The model
card quotes this measurement.
"""

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from checkpoint.config import read_config
from checkpoint.families import ResamplerModelConfig, layout
from checkpoint.release_probes import add_probes
from checkpoint.saving import save
from checkpoint.store import ModelStore
from demo.evaluate import Score, add_evaluation_arguments, measure, report, score, table
from demo.probes import write_probes
from demo.questions import LANGUAGES, TOPICS, Language, Topic
from demo.train import DEFAULT_FOLDER, TOKENIZER_FILE, snapshot_name
from tandem.stack import StackConfig

RESULTS = Path(__file__).parent / "results"

Scores = dict[tuple[Language | None, Topic | None], Score]  # None means all


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A model at one step of its training."""

    model: ResamplerModelConfig
    weights: dict[str, Tensor]  # by name in a checkpoint
    tokenizer_json: str
    step: int


def read_snapshot(folder: Path, step: int) -> Snapshot:
    """Read a snapshot from the folder of a training run.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the folder has no readable configuration.
        OSError: the folder has no snapshot of this step.
    """
    model = read_config(folder)
    assert isinstance(model, ResamplerModelConfig)
    return Snapshot(
        model=model,
        weights=torch.load(folder / snapshot_name(step), weights_only=True),
        tokenizer_json=(folder / TOKENIZER_FILE).read_text(encoding="utf-8"),
        step=step,
    )


def publish(root: Path, tag: str, snapshot: Snapshot, card: str) -> Path:
    """Write a release in bfloat16 to a model store.

    Returns the release's folder in the store at `root`.

    Raises:
        FailedPrecondition: TAG_EXISTS, or the weights are not those of the model.
    """
    store = ModelStore(root)
    with store.create(tag) as folder:
        (folder / "README.md").write_text(card, encoding="utf-8")
        save(
            folder,
            snapshot.model,
            snapshot.weights,
            tag,
            tokenizer_json=snapshot.tokenizer_json,
            dtype=torch.bfloat16,
        )
    return store.folder(tag)


def model_card(tag: str, model: ResamplerModelConfig, step: int, scores: Scores, note: str = "") -> str:
    """Return a release's model card in Markdown."""
    millions = sum(math.prod(spec.shape) for spec in layout(model)) / 1e6
    vision, language = model.vision, model.language
    rows = "\n".join(
        f"| {topic or '**all**'} | "
        + " | ".join(
            f"{scores[name, topic].right:.1%} | {scores[name, topic].right_when_swapped:.1%}"
            for name in (*LANGUAGES, None)
        )
        + " |"
        for topic in (*TOPICS, None)
    )
    return f"""# {tag}

Answers questions in English and Chinese about drawn images of one to three shop items. It names their kind, colour,
material, number and position, answers yes or no, describes the whole image, and understands a second question that
refers to the first. It is a small model for trying and testing Tandem, and it really reads its answers from the image.
It does not handle other images or other questions.

- {millions:.2f} million parameters, stored in bfloat16.
- Vision transformer: {vision.num_layers} layers, width {vision.width}, {_patches(model)}
- Decoder: {language.num_layers} layers, width {language.width}, {language.num_heads} query and \
{language.num_kv_heads} key-value heads.
- Trained by `demo/train.py` on two CPU cores. These are the weights after {step:,} steps. `demo/scenes.py` and
  `demo/questions.py` generate the images and questions. No other data was used.{note and f" {note}"}

## Accuracy

Measured through the running stack with greedy decoding: {scores[None, None].questions:,} questions about images from
seeds that training never uses. An answer counts only if it matches exactly. In a conversation of two turns, both
answers must match. "Swapped" asks the same question about a different image. An answer that is still right then did
not come from the image.

| topic | English | swapped | Chinese | swapped | both | swapped |
|---|---|---|---|---|---|---|
{rows}
"""


def _patches(model: ResamplerModelConfig) -> str:
    """Describe the way from patches to visual tokens."""
    vision, resampler = model.vision, model.resampler
    if resampler.kind == "none":
        return f"{vision.num_patches} patches, each a visual token."
    return f"""{vision.num_patches} patches pooled to {vision.num_pooled}.
- Perceiver resampler: {resampler.num_layers} layers, {resampler.num_queries} visual tokens."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.release", description="Publish a training snapshot as a release."
    )
    parser.add_argument("--tag", required=True, help="tag of the new release, for example tandem-demo-v1.2.0")
    parser.add_argument("--step", type=int, required=True, help="training step of the snapshot")
    parser.add_argument("--note", default="", help="a sentence about the training, for the model card")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="folder of the training run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the scores (default: demo/results)")
    add_evaluation_arguments(parser)
    arguments = parser.parse_args()
    console = Console()
    snapshot = read_snapshot(arguments.folder, arguments.step)
    with tempfile.TemporaryDirectory() as scratch:
        publish(Path(scratch), arguments.tag, snapshot, card="Not measured yet.\n")
        stack = StackConfig(models=Path(scratch), release=arguments.tag)
        outcomes = measure(stack, arguments.questions, arguments.seed, console)
    console.print(table(arguments.tag, outcomes))
    scores = {(name, topic): score(outcomes, name, topic) for name in (*LANGUAGES, None) for topic in (*TOPICS, None)}
    card = model_card(arguments.tag, snapshot.model, snapshot.step, scores, arguments.note)
    folder = publish(arguments.models, arguments.tag, snapshot, card)
    with tempfile.TemporaryDirectory() as scratch:
        probes = Path(scratch) / "probes.jsonl"
        write_probes(probes)
        add_probes(folder, probes)
    results = json.dumps(report(arguments.tag, arguments.seed, outcomes), indent=2, ensure_ascii=False)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / f"{arguments.tag}.json").write_text(results + "\n", encoding="utf-8")
    console.print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
