"""`tandem checkpoint export --to tensorrt` and `--to triton-repository`.

The modules are imported when a command runs, as in `tandem.commands.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tandem.commands import checkpoint_tables as tables

if TYPE_CHECKING:  # these modules need an extra
    from vision_service.exporting import EngineRecord, ExportOptions


class Platform(StrEnum):
    """The platforms of `TritonSettings`."""

    onnxruntime = "onnxruntime"
    tensorrt_plan = "tensorrt_plan"
    python = "python"


class InstanceKind(StrEnum):
    """Where Triton puts instances."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


OnStep = Callable[[str], None]
Repository = Annotated[
    Path | None, typer.Argument(metavar="FOLDER", help="Model repository, for --to triton-repository.")
]
TritonPlatform = Annotated[Platform, typer.Option("--triton-platform", help="Backend of Triton that runs the model.")]
Instances = Annotated[int, typer.Option("--instances", min=1, metavar="N", help="Instances that Triton runs.")]
Kind = Annotated[InstanceKind, typer.Option("--instance-kind", help="Where Triton puts them.")]
MaxWait = Annotated[
    float, typer.Option("--max-wait-ms", min=0, metavar="MS", help="Time that a request waits in Triton for others.")
]


def export_engine(folder: Path, options: ExportOptions, on_step: OnStep) -> None:
    """Build an engine and show its record."""
    from vision_service.exporting import export_tensorrt

    record = export_tensorrt(folder, options, on_step)
    typer.echo(f"built an engine for {record.key.gpu}")
    tables.show(_engine(record))


def export_repository(
    folder: Path, repository: Path | None, options: ExportOptions, fields: Mapping[str, Any], on_step: OnStep
) -> None:
    """Add a version to a model repository and show it.

    Args:
        folder: of the checkpoint.
        repository: the argument FOLDER.
        options: how to export.
        fields: of `TritonSettings`, besides the size of batches.
        on_step: called at the start of each step.
    """
    if repository is None:
        raise typer.BadParameter("give the folder of the model repository.", param_hint="FOLDER")
    from vision_service.exporting import TritonSettings, export_triton

    settings = TritonSettings(max_batch_size=options.max_batch_size, **fields)
    version = export_triton(folder, repository, settings, options, on_step)
    typer.echo(f"added version {version.name} of {version.parent.name} to {repository}")


def _engine(record: EngineRecord) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("fact", no_wrap=True)
    table.add_column("value")
    table.add_row("library", f"{record.key.library} {record.key.version}")
    table.add_row("GPU", f"{record.key.gpu}, compute capability {record.key.compute_capability}")
    table.add_row("size", f"{tables.size(record.num_bytes)}, built in {record.build_s:.1f} s")
    for name, shapes in record.profile.items():
        table.add_row(f"shapes of {name}", f"{list(shapes.min)} to {list(shapes.max)}, best at {list(shapes.opt)}")
    if record.max_error is None or record.mean_error is None:
        table.add_row("error", "not measured: there is no GPU here")
    else:
        table.add_row("largest error", f"{record.max_error:.2e} of the largest magnitude")
        table.add_row("mean error", f"{record.mean_error:.2e} of the mean magnitude")
    table.add_row("engine", record.engine_sha256)
    return table
