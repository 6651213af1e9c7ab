"""`tandem checkpoint export` and `choose-backend`: a vision half for other libraries.

The modules are imported when a command runs, as in `tandem.commands.checkpoint`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from chassis.extras import require_extras
from checkpoint.store import ModelStore
from tandem.commands import checkpoint_tables as tables
from tandem.commands.checkpoint_triton import (
    InstanceKind,
    Instances,
    Kind,
    MaxWait,
    Platform,
    Repository,
    TritonPlatform,
    export_engine,
    export_repository,
)

if TYPE_CHECKING:  # these modules need an extra
    from checkpoint.backend_choice import BackendChoice
    from checkpoint.exports import Export
    from checkpoint.probes import Probes
    from vision_service.exporting import Exported


class Target(StrEnum):
    """The kinds of exports, and the forms made of them."""

    onnx = "onnx"
    openvino = "openvino"
    tensorrt = "tensorrt"
    triton_repository = "triton-repository"


_EXTRAS = {Target.openvino: "openvino", Target.triton_repository: "triton"}


class Arithmetic(StrEnum):
    """The precisions of `checkpoint.exports.Precision`."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Device(StrEnum):
    """Kinds of devices."""

    cpu = "cpu"
    cuda = "cuda"


Tag = Annotated[str, typer.Argument(metavar="TAG", help="Tag of a checkpoint.")]
Models = Annotated[
    Path, typer.Option("--models", metavar="FOLDER", help="The model store: a folder of checkpoint folders.")
]
Precision = Annotated[Arithmetic, typer.Option("--precision", help="Type of weights and arithmetic.")]
BatchSize = Annotated[int, typer.Option("--max-batch-size", min=1, metavar="N", help="Images of one forward pass.")]
ImagePixels = Annotated[
    int, typer.Option("--max-resized-pixels", min=2**16, metavar="N", help="Pixels of one image, for any-size models.")
]


def export(
    tag: Tag,
    to: Annotated[Target, typer.Option("--to", help="Library that will run the vision half.")],
    repository: Repository = None,
    precision: Precision = Arithmetic.bfloat16,
    models: Models = Path("models"),
    max_batch_size: BatchSize = 16,
    max_resized_pixels: ImagePixels = 2**20,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", exists=True, help="Image to compare on, besides the built-in ones."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing export.")] = False,
    probes: Annotated[
        bool, typer.Option("--probes", help="Let the release answer its probes with torch and with the export.")
    ] = False,
    platform: TritonPlatform = Platform.onnxruntime,
    instances: Instances = 1,
    instance_kind: Kind = InstanceKind.auto,
    max_wait_ms: MaxWait = 2.0,
) -> None:
    """Export a vision half, beside its checkpoint.

    The result is compared with torch in float32, and refused if it differs too much.
    """
    require_extras("tandem checkpoint export", "export", *([_EXTRAS[to]] if to in _EXTRAS else []))
    if probes:
        require_extras("tandem checkpoint export --probes", "gateway", "stages")
        if to not in (Target.onnx, Target.openvino):
            raise typer.BadParameter("only an export to onnx or openvino runs in a stack of this command")
    from tandem.commands.export_probes import read_probes
    from vision_service.exporting import ExportOptions, export_vision

    options = ExportOptions(
        precision=precision.value,
        max_batch_size=max_batch_size,
        max_resized_pixels=max_resized_pixels,
        images=tuple(images or ()),
        replace=replace,
    )
    folder = ModelStore(models).folder(tag)
    asked = read_probes(folder) if probes else None
    with Console(stderr=True).status(f"reading {tag}") as status:
        if to is Target.tensorrt:
            export_engine(folder, options, status.update)
            return
        if to is Target.triton_repository:
            fields = {"platform": platform, "instances": instances, "kind": instance_kind, "max_wait_ms": max_wait_ms}
            export_repository(folder, repository, options, fields, status.update)
            return
        exported = export_vision(folder, "openvino" if to is Target.openvino else "onnx", options, status.update)
    typer.echo(f"exported {folder / 'exports' / exported.export.name}")
    tables.show(_exported(exported))
    _compare_answers(folder, exported.export, asked)


def _compare_answers(folder: Path, export: Export, probes: Probes | None) -> None:
    """Show how the answers differ from torch's, or offer to."""
    from tandem.commands.export_probes import compare_export

    if probes is None:
        typer.echo("To compare the answers to the release's probes with torch's, add --probes --replace.")
        return
    with Console(stderr=True).status("asking probes") as status:
        difference = compare_export(folder, export, probes, status.update)
    typer.echo(difference.sentence("the export", "torch"))


def choose_backend(
    tag: Tag,
    precision: Precision = Arithmetic.bfloat16,
    models: Models = Path("models"),
    device: Annotated[Device, typer.Option("--device", help="Kind of device to measure on.")] = Device.cpu,
    max_batch_size: BatchSize = 16,
    max_resized_pixels: ImagePixels = 2**20,
    replace: Annotated[bool, typer.Option("--replace", help="Measure again, though a choice is recorded.")] = False,
) -> None:
    """Measure the backends of a release, and record the fastest.

    The vision service uses it with --backend auto.
    """
    require_extras("tandem checkpoint choose-backend", "stages")
    import torch

    from checkpoint.backend_choice import write_choice
    from vision_service.backends import EXPORTS, BackendOptions
    from vision_service.exporting import choose_backend as measure

    options = BackendOptions(
        precision=precision.value,
        device=torch.device(device.value),
        max_batch_size=max_batch_size,
        max_resized_pixels=max_resized_pixels,
    )
    folder = ModelStore(models).folder(tag)
    with Console(stderr=True).status(f"measuring {tag}") as status:
        choice = measure(folder, ["torch", *EXPORTS], options, on_step=status.update)
    write_choice(choice, folder, replace=replace)
    tables.show(_chosen(choice))


def _exported(exported: Exported) -> Table:
    export, (largest, mean) = exported.export, exported.bounds
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("fact", no_wrap=True)
    table.add_column("value")
    table.add_row("files", f"{', '.join(export.files)}: {tables.size(exported.num_bytes)}")
    table.add_row("weights and arithmetic", export.precision)
    table.add_row("made by", ", ".join(f"{tool} {version}" for tool, version in export.tools.items()))
    if export.opset is not None:
        table.add_row("ONNX opset", str(export.opset))
    images = f"{exported.errors.num_images} images, alone and in batches"
    table.add_row("largest error", f"{export.max_error:.2e} of the largest magnitude (allowed {largest:g}), {images}")
    table.add_row("mean error", f"{export.mean_error:.2e} of the mean magnitude (allowed {mean:g})")
    table.add_row("digest", export.digest.hex())
    return table


def _chosen(choice: BackendChoice) -> Table:
    table = Table(title=f"{choice.device}, {choice.precision}", title_justify="left", box=None, pad_edge=False)
    table.add_column("backend")
    table.add_column("images/s", justify="right")
    table.add_column("")
    for name, rate in sorted(choice.images_per_s.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{rate:.2f}", "recorded" if name == choice.backend else "")
    for name, reason in choice.skipped.items():
        table.add_row(name, "-", reason)
    return table
