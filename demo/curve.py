"""The training curve as JSON and as a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Measurements after one step."""

    step: int
    loss: float  # on the step's own images, mean over the tokens of the answers
    validation_loss: float
    validation_attribute_loss: float
    validation_accuracy: float  # share of conversations with exactly the right answers
    cpu_s: float = 0.0  # CPU time of the first process until this step. Older curves lack it.


def write_points(points: Sequence[Point], path: Path) -> None:
    """Write the curve as JSON, one point per line."""
    lines = ",\n".join(f"  {json.dumps(asdict(point))}" for point in points)
    path.write_text(f"[\n{lines}\n]\n")


def read_points(path: Path) -> list[Point]:
    """Read a curve written by `write_points`."""
    return [Point(**point) for point in json.loads(path.read_text())]


def plot(points_path: Path, image_path: Path) -> None:
    """Draw loss and accuracy over steps as a PNG."""
    # Imported late: the worker processes of training import this module and draw no plots.
    from matplotlib.figure import Figure

    points = read_points(points_path)
    steps = [point.step for point in points]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    losses = figure.add_subplot()
    losses.plot(steps, [point.loss for point in points], color="tab:gray", alpha=0.5, label="loss, training images")
    losses.plot(steps, [point.validation_loss for point in points], color="tab:blue", label="loss, other images")
    losses.set(xlabel="step", ylabel="loss per token of the answers", yscale="log")
    accuracy = losses.twinx()
    right = [100 * point.validation_accuracy for point in points]
    accuracy.plot(steps, right, color="tab:green", label="exactly right answers, other images")
    accuracy.set(ylabel="%", ylim=(0, 101))
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    figure.savefig(image_path, dpi=120)
