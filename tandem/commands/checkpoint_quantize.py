"""`tandem checkpoint quantize`: a checkpoint with fewer bits a weight.

The modules are imported when the command runs, as in `tandem.commands.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chassis.extras import require_extras
from checkpoint.store import ModelStore
from tandem.commands import checkpoint_tables as tables

if TYPE_CHECKING:  # these modules need an extra
    from checkpoint.families import ModelConfig
    from checkpoint.manifest import Manifest
    from checkpoint.quantizing import Rounder


class SchemeName(StrEnum):
    """The schemes of `checkpoint.families.Scheme`."""

    w8a8 = "w8a8"
    w4a16 = "w4a16"
    w4a8 = "w4a8"


class GroupSize(StrEnum):
    """Inputs of a row that share a scale."""

    large = "128"
    small = "32"


def quantize(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Tag of the checkpoint to start from.")],
    scheme: Annotated[SchemeName, typer.Option("--scheme", help="Bits of weights and of activations.")],
    new_tag: Annotated[str, typer.Option("--tag", metavar="TAG", help="Tag of the new checkpoint.")],
    group: Annotated[
        GroupSize, typer.Option("--group", help="Weights that share a scale, for 4 bits.")
    ] = GroupSize.large,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            exists=True,
            help="Prompts to calibrate with, as probes. Default: round each weight to the nearest value.",
        ),
    ] = None,
    max_prompts: Annotated[int, typer.Option("--max-prompts", min=1, metavar="N", help="Prompts to read.")] = 128,
    models: Annotated[
        Path, typer.Option("--models", metavar="FOLDER", help="The model store: a folder of checkpoint folders.")
    ] = Path("models"),
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Ask both releases the probes of the source, if any.")
    ] = True,
) -> None:
    """Make a checkpoint with 8 or 4 bits a weight.

    Vision half, embeddings and norms stay as they are. The head gets 8 bits.
    """
    require_extras("tandem checkpoint quantize", "stages", *(["gateway"] if compare else []))
    from checkpoint.manifest import read_manifest, read_verified_config
    from checkpoint.quantizing import plan
    from checkpoint.quantizing import quantize as quantize_checkpoint

    store = ModelStore(models)
    store.new_folder(new_tag)
    source = store.folder(tag)
    before = read_verified_config(source, read_manifest(source))
    config = plan(before, scheme.value, int(group))
    rounder = _rounder(source, before, config, prompts, max_prompts)
    with _layer_progress(before.language.num_layers) as on_layer:
        made = quantize_checkpoint(source, models, new_tag, config, rounder, on_layer=on_layer)
    typer.echo(f"quantized {models / new_tag}")
    tables.show(_facts(store, tag, config, made, calibrated=prompts is not None))
    if compare:
        _compare(source, store.folder(new_tag))


def _rounder(source: Path, before: ModelConfig, config: ModelConfig, prompts: Path | None, max_prompts: int) -> Rounder:
    from checkpoint.quantizing import NearestRounder
    from checkpoint.rounding import Grid

    quantization = config.language.quantization
    assert quantization is not None
    grid = Grid(quantization.scheme, quantization.group or 0)
    if prompts is None:
        return NearestRounder(grid)
    from checkpoint.weight_files import open_folder
    from language_service.calibration import CalibratedRounder
    from tandem.commands.calibration_prompts import read_prompts

    with Console(stderr=True).status("encoding the images of the prompts"):
        read = read_prompts(source, prompts, max_prompts)
    return CalibratedRounder(before.language, open_folder(source), grid, read)


@contextmanager
def _layer_progress(num_layers: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show the progress of rounding, and print each layer's errors."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("layers", total=num_layers + 1)

        def on_layer(index: int, errors: Mapping[str, float]) -> None:
            worst = max(errors, key=errors.__getitem__)
            mean = sum(errors.values()) / len(errors)
            name = f"layer {index:3}" if index < num_layers else "head     "
            progress.console.print(f"{name}  error {mean:.2%}, at most {errors[worst]:.2%} in {worst}", markup=False)
            progress.advance(task)

        yield on_layer


def _facts(store: ModelStore, tag: str, config: ModelConfig, made: Manifest, *, calibrated: bool) -> Table:
    from checkpoint.weight_files import open_folder

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("fact", no_wrap=True)
    table.add_column("value")
    table.add_row("weights", f"{config.language.quantization}, head w8a8")
    table.add_row("rounded", "by the errors of outputs (GPTQ)" if calibrated else "to nearest")
    sizes = (tables.size(open_folder(store.folder(one)).num_bytes()) for one in (tag, made.tag))
    table.add_row("size on disk", " -> ".join(sizes))
    table.add_row("language half", made.language.digest.hex()[:12])
    return table


def _compare(source: Path, result: Path) -> None:
    """Show how the answers to the probes differ."""
    from checkpoint.release_probes import read_release_probes
    from tandem.commands.export_probes import compare_checkpoints

    probes = read_release_probes(source)
    if not probes.probes:
        typer.echo(f"{source.name} has no probes to compare the answers with: add some with `tandem probes add`.")
        return
    with Console(stderr=True).status("asking probes") as status:
        difference = compare_checkpoints(source, result, probes, status.update)
    typer.echo(difference.sentence(result.name, source.name))
