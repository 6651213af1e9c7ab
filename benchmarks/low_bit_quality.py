"""Quality of the demo model with 8 and 4 bits a weight.

    python -m benchmarks.low_bit_quality          # the 2,000 questions of `demo.evaluate`
    python -m benchmarks.low_bit_quality --quick  # 24 of them

Each decoder reads the same conversations (`benchmarks/tools/perplexity.py`), and gets a perplexity over the right
answers. transformers computes it for the weights in bfloat16 as well, which proves the measure. The second text is the
same without the image: then the answers are hard to guess, so that small errors show.

Checkpoints are made as `tandem checkpoint quantize` makes them. Those that are calibrated read conversations about
images that are not measured.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

from benchmarks.tools.perplexity import (
    Form,
    Passage,
    Reader,
    Score,
    make_checkpoint,
    our_reader,
    read_passages,
    score,
    transformers_reader,
)
from benchmarks.tools.report import Report, parse_arguments
from checkpoint.families import Scheme
from checkpoint.store import ModelStore

TAG = "tandem-demo-v1.1.0"
CALIBRATION_PASSAGES = 128
CALIBRATION_SEED = 1  # other images than those of the questions
THEIRS, OURS = "transformers, bfloat16", "bfloat16"
SAME_AIM = 0.005  # our perplexity in bfloat16, relative to that of transformers
WORSE_AIMS: Mapping[Scheme, float] = {"w8a8": 0.01, "w4a16": 0.03}  # perplexity, relative to bfloat16. w4a8 has none.
LOST_AIM = 0.01  # share of the conversations that a scheme may answer worse
TEXTS = ("answers about the image", "answers without the image")


FORMS = (Form("w8a8"), Form("w4a16"), Form("w4a16", calibrated=True), Form("w4a8"), Form("w4a8", calibrated=True))

Scores = dict[tuple[str, str], Score]  # by decoder and text


def _quantized_reader(source: Path, root: Path, form: Form, calibration: Sequence[Passage]) -> Reader:
    return our_reader(make_checkpoint(source, root, form, calibration))


def measure(source: Path, root: Path, num_conversations: int, num_calibrating: int) -> Scores:
    """Score all decoders on both texts."""
    passages = read_passages(source, num_conversations)
    calibration = read_passages(source, num_calibrating, seed=CALIBRATION_SEED)
    texts = dict(zip(TEXTS, (passages, [passage.without_image() for passage in passages]), strict=True))
    readers: dict[str, Callable[[], Reader]] = {
        "transformers, float32": partial(transformers_reader, source, torch.float32),
        THEIRS: partial(transformers_reader, source, torch.bfloat16),
        OURS: partial(our_reader, source),
    }
    for form in FORMS:
        readers[str(form)] = partial(_quantized_reader, source, root, form, calibration)
    scores: Scores = {}
    for name, open_reader in track(readers.items(), "reading", console=Console(stderr=True)):
        reader = open_reader()
        for text, chosen in texts.items():
            scores[name, text] = score(reader, chosen)
    return scores


def fill(report: Report, scores: Scores) -> None:
    """Add all figures."""
    for (name, text), one in scores.items():
        report.add(f"{text}: perplexity, {name}", one.perplexity, "")
    for text in TEXTS:
        ratio = scores[OURS, text].perplexity / scores[THEIRS, text].perplexity
        aim = f"within {100 * SAME_AIM:g}"
        report.add(
            f"{text}: ours above transformers, bfloat16",
            100 * (ratio - 1),
            "%",
            aim=aim,
            met=abs(ratio - 1) <= SAME_AIM,
        )
        for form in FORMS:
            worse = scores[str(form), text].perplexity / scores[OURS, text].perplexity - 1
            most = WORSE_AIMS.get(form.scheme)
            aim, met = ("", None) if most is None else (f"at most {100 * most:g}", worse <= most)
            report.add(f"{text}: {form} above bfloat16", 100 * worse, "%", aim=aim, met=met)
    exact = scores[OURS, TEXTS[0]].right
    report.add(f"{TEXTS[0]}: right, {OURS}", 100 * exact, "%")
    for form in FORMS:
        right = scores[str(form), TEXTS[0]].right
        aim = f"at least {100 * (exact - LOST_AIM):g}"
        report.add(f"{TEXTS[0]}: right, {form}", 100 * right, "%", aim=aim, met=right >= exact - LOST_AIM)


def plot(axes: Axes, scores: Scores) -> None:
    """Plot the perplexities relative to bfloat16."""
    names = [THEIRS, *map(str, FORMS)]
    for place, text in enumerate(TEXTS):
        worse = [100 * (scores[name, text].perplexity / scores[OURS, text].perplexity - 1) for name in names]
        axes.barh([index + 0.4 * place for index in range(len(names))], worse, height=0.4, label=text)
    axes.set_yticks([index + 0.2 for index in range(len(names))], names)
    axes.invert_yaxis()
    axes.set(xlabel="perplexity above that of our decoder in bfloat16, %")
    axes.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure the quality of 8 and 4 bits a weight.",
        arguments,
        models={"type": Path, "default": Path("models"), "help": "the model store (default: models)"},
    )
    source = ModelStore(options.models).folder(TAG)
    num_conversations = 24 if options.quick else 2000
    with tempfile.TemporaryDirectory() as root:
        scores = measure(source, Path(root), num_conversations, 16 if options.quick else CALIBRATION_PASSAGES)
    report = Report("low_bit_quality", f"{TAG} with fewer bits a weight, {num_conversations:,} conversations")
    fill(report, scores)
    report.publish(lambda axes: plot(axes, scores), options.json)


if __name__ == "__main__":
    main()
