"""Threshold of the similarity cache: false matches and missed copies.

The script draws demo scenes. For each scene it also draws variants with one attribute of one item changed, and copies
as shops make them: re-encoded, resized or slightly cropped. For each threshold it prints the share of pairs whose
thumbnails are at least that similar. All copies should match, and no different scenes. It needs no model.
"""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from benchmarks.tools.report import Report, parse_arguments
from demo.drawing import draw
from demo.scenes import COLOURS, HELD_OUT_SEEDS, KINDS, MATERIALS, Scene, make_scene
from vision_service.similar_images import grey_thumbnail, thumbnail_vector

THRESHOLDS = (0.90, 0.95, 0.98, 0.99)
DEFAULT = 0.95
Cosines = NDArray[np.float32]


def saved(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """Encode the image to a file and decode it again."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Crop a share of the image's width and height.

    Half of it is cut on each side.
    """
    dx, dy = image.width * share / 2, image.height * share / 2
    return image.crop((round(dx), round(dy), round(image.width - dx), round(image.height - dy)))


def resized(image: Image.Image, scale: float) -> Image.Image:
    """Scale the image and save it as JPEG."""
    size = round(image.width * scale), round(image.height * scale)
    return saved(image.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=85)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "copy: JPEG quality 90": lambda image: saved(image, "JPEG", quality=90),
    "copy: JPEG quality 70": lambda image: saved(image, "JPEG", quality=70),
    "copy: JPEG quality 50": lambda image: saved(image, "JPEG", quality=50),
    "copy: half the size": lambda image: resized(image, 0.5),
    "copy: twice the size": lambda image: resized(image, 2),
    "copy: 2 % cropped": lambda image: cropped(image, 0.02),
    "copy: 5 % cropped": lambda image: cropped(image, 0.05),
    "copy: 10 % cropped": lambda image: cropped(image, 0.10),
}
LARGER_CROPS = {"copy: 5 % cropped", "copy: 10 % cropped"}  # without an aim


def changed(scene: Scene, attribute: str, rng: random.Random) -> Scene:
    """Return the scene with one attribute of one item changed."""
    choices: dict[str, Sequence[str]] = {"colour": COLOURS, "kind": KINDS, "material": MATERIALS}
    at = rng.randrange(len(scene.items))
    item = scene.items[at]
    other = rng.choice([value for value in choices[attribute] if value != getattr(item, attribute)])
    fields: dict[str, Any] = {attribute: other}
    return replace(scene, items=(*scene.items[:at], replace(item, **fields), *scene.items[at + 1 :]))


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vector with length 1."""
    return vector / np.float32(np.linalg.norm(vector))


def pairs(vectors: Sequence[NDArray[np.float32]]) -> Cosines:
    """Return the cosine of every pair of different images."""
    matrix = np.stack(vectors)
    return np.asarray((matrix @ matrix.T)[np.triu_indices(len(matrix), 1)])


def vector_of(image: Image.Image) -> NDArray[np.float32]:
    """Return an image's thumbnail as a unit vector."""
    vector = thumbnail_vector(image)
    assert vector is not None  # only blank images have no thumbnail
    return vector


def measure(num_scenes: int) -> dict[str, Cosines]:
    """Return cosines by kind of pair."""
    rng = random.Random(0)
    own, raw = [], []
    cosines: dict[str, list[float]] = {f"one {name} changed": [] for name in ("kind", "colour", "material")}
    cosines |= {name: [] for name in COPIES}
    for seed in track(HELD_OUT_SEEDS[:num_scenes], description="drawing"):
        scene = make_scene(seed)
        image = draw(scene)
        own.append(vector_of(image))
        raw.append(unit(grey_thumbnail(image).ravel()))
        for attribute in ("kind", "colour", "material"):
            other = vector_of(draw(changed(scene, attribute, rng)))
            cosines[f"one {attribute} changed"].append(float(own[-1] @ other))
        for name, copy in COPIES.items():
            cosines[name].append(float(own[-1] @ vector_of(copy(image))))
    found = {"different scenes": pairs(own), "different scenes, mean kept": pairs(raw)}
    return found | {name: np.array(values, np.float32) for name, values in cosines.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments("Measure false matches and missed copies of the similarity cache.", arguments)
    found = measure(150 if options.quick else 1000)
    report = Report("similar_images", "Share of image pairs that match, by threshold")
    for name, cosines in found.items():
        for threshold in THRESHOLDS:
            share = 100 * float(np.mean(cosines >= threshold))
            aim, met = "", None
            if threshold == DEFAULT and name == "different scenes":
                aim, met = "none", share == 0
            elif threshold == DEFAULT and name in COPIES and name not in LARGER_CROPS:
                aim, met = "all", share == 100
            report.add(f"{name}, threshold {threshold}", share, "%", aim=aim, met=met)
    quantiles = (0, 0.001, 0.01, 0.5, 0.99, 0.999, 1)
    report.details["quantiles"] = {
        name: dict(zip(map(str, quantiles), np.quantile(cosines, quantiles).round(5).tolist(), strict=True))
        for name, cosines in found.items()
    }
    report.details["num_pairs"] = {name: len(cosines) for name, cosines in found.items()}

    def plot(axes: Axes) -> None:
        thresholds = np.linspace(0.8, 1, 201)
        for name, cosines in found.items():
            ordered = np.sort(cosines)
            shares = 100 * (1 - np.searchsorted(ordered, thresholds) / len(ordered))
            axes.plot(thresholds, shares, label=name, linestyle="-" if name in COPIES else "--")
        axes.axvline(DEFAULT, color="grey", linewidth=0.8)
        axes.set(xlabel="threshold (cosine of thumbnails)", ylabel="pairs at or above it, %")
        axes.legend(fontsize=7)

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
