"""`tandem checkpoint`: make, pack, verify and inspect checkpoints of a model store.

What needs torch is imported by the command that uses it, so that `tandem ask` starts without.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from checkpoint.config import ModelConfig
from checkpoint.presets import PRESETS
from checkpoint.store import ModelStore
from tandem.commands import checkpoint_tables as tables

app = typer.Typer(help="Make, pack, verify and inspect checkpoints.", no_args_is_help=True)


class Dtype(StrEnum):
    """Stored element types."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Format(StrEnum):
    """Kinds of weight files."""

    safetensors = "safetensors"
    bin = "bin"


Models = Annotated[
    Path, typer.Option("--models", metavar="FOLDER", help="The model store: a folder of checkpoint folders.")
]
NewTag = Annotated[str, typer.Option("--tag", metavar="TAG", help="Tag of the new checkpoint, such as demo-v1.0.0.")]
Shards = Annotated[int, typer.Option("--shards", min=1, metavar="N", help="Number of weight files.")]
WeightFormat = Annotated[Format, typer.Option("--format", help="Kind of weight files.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def new(
    preset: Annotated[
        str, typer.Option("--preset", metavar="PRESET", help=f"Shape of the model: {', '.join(PRESETS)}.")
    ],
    tag: NewTag,
    models: Models = Path("models"),
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Equal seeds give equal weights.")] = 0,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Stored element type.")] = Dtype.bfloat16,
    shards: Shards = 1,
    format: WeightFormat = Format.safetensors,  # noqa: A002  (the flag's name)
) -> None:
    """Make a checkpoint with random weights."""
    import torch

    from checkpoint.initial import create_checkpoint

    config = _preset(preset)
    with _progress(tag) as on_tensor:
        create_checkpoint(
            models,
            tag,
            config,
            seed=seed,
            dtype=getattr(torch, dtype),
            shards=shards,
            container=format.value,
            on_tensor=on_tensor,
        )
    typer.echo(f"made {models / tag}")


@app.command()
def pack(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE", help="A folder with weights, or weight files.")],
    tag: NewTag,
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The model's config.json.")],
    models: Models = Path("models"),
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="tokenizer.json; the one beside the weights if left out."),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            "--chat-template", metavar="FILE", help="The chat template; the one beside the weights, else Tandem's own."
        ),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Stored element type; unchanged if left out.")] = None,
    shards: Shards = 1,
    format: WeightFormat = Format.safetensors,  # noqa: A002  (the flag's name)
) -> None:
    """Make a released checkpoint out of foreign weights."""
    import torch

    from checkpoint.packing import pack as pack_checkpoint

    with _progress(tag) as on_tensor:
        pack_checkpoint(
            sources,
            models,
            tag,
            config=config,
            tokenizer=tokenizer,
            chat_template=chat_template,
            dtype=getattr(torch, dtype) if dtype else None,
            shards=shards,
            container=format.value,
            on_tensor=on_tensor,
        )
    typer.echo(f"packed {models / tag}")


@app.command()
def verify(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Tag of a checkpoint.")], models: Models = Path("models")
) -> None:
    """Compare every file and both halves with the manifest."""
    from checkpoint.verification import raise_for_problems
    from checkpoint.verification import verify as verify_checkpoint

    folder = ModelStore(models).folder(tag)
    with Console(stderr=True).status(f"hashing {tag}") as status:
        checks = verify_checkpoint(folder, lambda check: status.update(f"hashed {check.what}"))
    tables.show(tables.checks(tag, checks))
    raise_for_problems(tag, checks)


@app.command()
def inspect(
    tag: Annotated[str | None, typer.Argument(metavar="TAG", help="Tag of a checkpoint.")] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="PRESET", help=f"A shape without weights: {', '.join(PRESETS)}.")
    ] = None,
    models: Models = Path("models"),
    as_json: Json = False,
) -> None:
    """Show what a checkpoint or a preset is made of."""
    from checkpoint.inspection import inspect_checkpoint, inspect_preset

    if (tag is None) == (preset is None):
        raise typer.BadParameter("give one of the two.", param_hint="TAG or --preset")
    if preset is not None:
        inspection = inspect_preset(preset, _preset(preset))
    else:
        inspection = inspect_checkpoint(ModelStore(models).folder(str(tag)))
    if as_json:
        typer.echo(json.dumps(asdict(inspection), indent=2))
    else:
        tables.show(*tables.inspection(inspection))


def _preset(name: str) -> ModelConfig:
    if name not in PRESETS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(PRESETS)}.", param_hint="--preset")
    return PRESETS[name]


@contextmanager
def _progress(tag: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show on stderr how much is written; yield what to tell of each tensor."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(tag, total=None)

        def on_tensor(_name: str, bytes_so_far: int, bytes_in_all: int) -> None:
            progress.update(task, completed=bytes_so_far, total=bytes_in_all)

        yield on_tensor
