"""Publishes a snapshot of training as a release: `python -m demo.release --tag tandem-demo-v1.1.0 --step 2400`.

The release is measured through the running stack first, from the files that are then published, and its model card says
what was measured.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from checkpoint.layout import layout
from checkpoint.saving import save
from checkpoint.store import ModelStore
from demo.evaluate import Score, add_evaluation_arguments, measure, report, score, table
from demo.questions import LANGUAGES, TOPICS, Language, Topic
from demo.train import DEFAULT_FOLDER, TOKENIZER_FILE, demo_model, snapshot_name
from tandem.stack import StackConfig

RESULTS = Path(__file__).parent / "results"

Scores = dict[tuple[Language | None, Topic | None], Score]  # None stands for all


def publish(root: Path, tag: str, weights: dict[str, Tensor], tokenizer_json: str, card: str) -> Path:
    """Write a release into the model store at `root`, in bfloat16; returns its folder.

    Raises:
        FailedPrecondition: TAG_EXISTS, or the weights are not the demo model's.
    """
    store = ModelStore(root)
    with store.create(tag) as folder:
        (folder / "README.md").write_text(card, encoding="utf-8")
        save(folder, demo_model(), weights, tag, tokenizer_json=tokenizer_json, dtype=torch.bfloat16)
    return store.folder(tag)


def model_card(tag: str, step: int, scores: Scores, note: str = "") -> str:
    """Write what a user should know of a release."""
    model = demo_model()
    millions = sum(math.prod(spec.shape) for spec in layout(model)) / 1e6
    vision, resampler, language = model.vision, model.resampler, model.language
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

Answers questions in English and Chinese about drawn images of one to three shop items: what they are, their colour,
their material, how many, where, yes or no, a description of all, and questions that refer to the answer before.
It is small, so that Tandem can be tried and tested with a model that truly looks at its image; of other images, and
of other questions, it knows nothing.

- {millions:.2f} million parameters, stored in bfloat16.
- Vision transformer: {vision.num_layers} layers, width {vision.width}, {vision.num_patches} patches pooled to \
{vision.num_pooled}.
- Perceiver resampler: {resampler.num_layers} layers, {resampler.num_queries} visual tokens.
- Decoder: {language.num_layers} layers, width {language.width}, {language.num_heads} query and \
{language.num_kv_heads} key-value heads.
- Trained by `demo/train.py` on two CPU cores; these are the weights after {step:,} steps. Images and questions are
  made by `demo/scenes.py` and `demo/questions.py`; no other data was used.{note and f" {note}"}

## Accuracy

Measured through the running stack with greedy decoding: {scores[None, None].questions:,} questions about images from
seeds that training cannot reach. An answer counts when it is the right one to the letter; of two turns, both must be.
'Swapped' asks the same with another image: what is right then was never read off the image.

| topic | English | swapped | Chinese | swapped | both | swapped |
|---|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m demo.release", description="Publish a snapshot of training.")
    parser.add_argument("--tag", required=True)
    parser.add_argument("--step", type=int, required=True, help="which snapshot")
    parser.add_argument("--note", default="", help="a sentence for the model card about how it was trained")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="of the training run")
    add_evaluation_arguments(parser)
    arguments = parser.parse_args()
    console = Console()
    weights: dict[str, Tensor] = torch.load(arguments.folder / snapshot_name(arguments.step), weights_only=True)
    tokenizer_json = (arguments.folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        publish(Path(scratch), arguments.tag, weights, tokenizer_json, card="Being measured.\n")
        stack = StackConfig(models=Path(scratch), release=arguments.tag)
        outcomes = measure(stack, arguments.questions, arguments.seed, console)
    console.print(table(arguments.tag, outcomes))
    scores = {(name, topic): score(outcomes, name, topic) for name in (*LANGUAGES, None) for topic in (*TOPICS, None)}
    folder = publish(
        arguments.models,
        arguments.tag,
        weights,
        tokenizer_json,
        model_card(arguments.tag, arguments.step, scores, arguments.note),
    )
    results = json.dumps(report(arguments.tag, arguments.seed, outcomes), indent=2, ensure_ascii=False)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{arguments.tag}.json").write_text(results + "\n", encoding="utf-8")
    console.print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
