"""`tandem checkpoint`: list, make, import, pack, quantize, verify, inspect and export checkpoints.

Each command imports the modules it needs when it runs, so `tandem ask` starts without torch and pydantic.
"""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chassis.extras import require_extras
from checkpoint.store import ModelStore
from tandem.commands import checkpoint_tables as tables
from tandem.commands.checkpoint_export import choose_backend, export
from tandem.commands.checkpoint_progress import file_progress, tensor_progress
from tandem.commands.checkpoint_quantize import quantize

app = typer.Typer(
    help="List, make, import, pack, quantize, verify, inspect and export checkpoints.", no_args_is_help=True
)
app.command()(export)
app.command()(choose_backend)
app.command()(quantize)


class Preset(StrEnum):
    """The names of `checkpoint.presets.PRESETS`, for `--help` without its libraries."""

    full_size = "qwen3-vl-8b"
    full_size_direct = "qwen3-vl-8b-direct"
    tiny = "tiny"
    demo = "demo"
    demo_direct = "demo-direct"
    qwen3_vl_2b = "qwen3-vl-2b-instruct"
    qwen3_vl_4b = "qwen3-vl-4b-instruct"
    qwen3_vl_8b = "qwen3-vl-8b-instruct"
    tiny_qwen3_vl = "tiny-qwen3-vl"


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
def tags(models: Models = Path("models"), as_json: Json = False) -> None:
    """List the checkpoints of a model store."""
    from checkpoint.listing import list_store

    store = ModelStore(models)
    entries = list(list_store(store))
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries], indent=2, default=bytes.hex))
    elif entries:
        tables.show(tables.store(entries))
    else:
        typer.echo(f"No checkpoint in {store.root}; `tandem checkpoint new` makes one.", err=True)


@app.command()
def new(
    preset: Annotated[Preset, typer.Option("--preset", help="Shape of the model.")],
    tag: NewTag,
    models: Models = Path("models"),
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Equal seeds give equal weights.")] = 0,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Stored element type.")] = Dtype.bfloat16,
    shards: Shards = 1,
    format: WeightFormat = Format.safetensors,  # noqa: A002  (the flag's name)
) -> None:
    """Make a checkpoint with random weights."""
    require_extras("tandem checkpoint new", "stages")
    import torch

    from checkpoint.initial import create_checkpoint
    from checkpoint.presets import PRESETS

    with tensor_progress(tag) as on_tensor:
        create_checkpoint(
            models,
            tag,
            PRESETS[preset],
            seed=seed,
            dtype=getattr(torch, dtype),
            shards=shards,
            container=format.value,
            on_tensor=on_tensor,
        )
    typer.echo(f"made {models / tag}")


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A released model as downloaded, such as a snapshot of the Hub.")
    ],
    tag: NewTag,
    models: Models = Path("models"),
    copy: Annotated[bool, typer.Option("--copy", help="Copy the weights. Default: link them where possible.")] = False,
) -> None:
    """Make a checkpoint from a released Qwen3-VL model.

    Nothing in the folder is run. The same command goes on after an interruption.
    """
    require_extras("tandem checkpoint import", "stages")
    from checkpoint.importing import import_folder

    try:
        with file_progress() as on_progress:
            imported = import_folder(source, models, tag, copy=copy, on_progress=on_progress)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"imported {models / tag}")
    tables.show(tables.imported(imported))


@app.command()
def pack(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE", help="A folder with weights, or weight files.")],
    tag: NewTag,
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The model's config.json.")],
    models: Models = Path("models"),
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FILE", help="tokenizer.json. Default: the one next to the weights."),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            "--chat-template",
            metavar="FILE",
            help="The chat template. Default: the one next to the weights, else Tandem's own.",
        ),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option("--dtype", help="Stored element type. Default: unchanged.")] = None,
    shards: Shards = 1,
    format: WeightFormat = Format.safetensors,  # noqa: A002  (the flag's name)
) -> None:
    """Make a checkpoint from foreign weights."""
    require_extras("tandem checkpoint pack", "stages")
    import torch

    from checkpoint.packing import pack as pack_checkpoint

    with tensor_progress(tag) as on_tensor:
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
    """Compare every file and both halves with the manifest.

    Only .bin weights need torch.
    """
    from checkpoint.verification import raise_for_problems
    from checkpoint.verification import verify as verify_checkpoint

    folder = ModelStore(models).folder(tag)
    with Console(stderr=True).status(f"hashing {tag}") as status:
        checks = verify_checkpoint(folder, lambda check: status.update(f"hashed {check.subject}"))
    tables.show(tables.checks(tag, checks))
    raise_for_problems(tag, checks)


@app.command()
def inspect(
    tag: Annotated[str | None, typer.Argument(metavar="TAG", help="Tag of a checkpoint.")] = None,
    preset: Annotated[Preset | None, typer.Option("--preset", help="A shape without weights.")] = None,
    models: Models = Path("models"),
    as_json: Json = False,
) -> None:
    """Show tensors, parameters and memory of a checkpoint or preset.

    Only a checkpoint needs torch.
    """
    if (tag is None) == (preset is None):
        raise typer.BadParameter("give one of the two.", param_hint="TAG or --preset")
    if tag is not None:
        require_extras("tandem checkpoint inspect TAG", "stages")
    from checkpoint.inspection import inspect_checkpoint, inspect_preset
    from checkpoint.presets import PRESETS

    if preset is not None:
        inspection = inspect_preset(preset.value, PRESETS[preset])
    else:
        inspection = inspect_checkpoint(ModelStore(models).folder(str(tag)))
    if as_json:
        typer.echo(json.dumps(asdict(inspection), indent=2))
    else:
        tables.show(*tables.inspection(inspection))
