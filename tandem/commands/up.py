"""`tandem up`: run all three services on this machine."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from chassis.extras import require_extras
from checkpoint.store import ModelStore
from checkpoint.tags import parse_tag
from tandem.errors import NotFound

Models = Annotated[Path, typer.Option(metavar="FOLDER", help="The model store, a folder of checkpoints.")]
Release = Annotated[
    str | None,
    typer.Option(metavar="TAG", help="A tag, or 'vision tag,language tag'. Default: the newest in the store."),
]
Port = Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of the gateway; 0 picks a free one.")]
Precision = Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Type both stages compute in.")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="Device of both stages: cpu or cuda:0.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of each stage.")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"] | None, typer.Option(help="Lowest level to log.")]


def up(
    models: Models = Path("models"),
    release: Release = None,
    port: Port = 50050,
    precision: Precision = None,
    device: Device = None,
    threads: Threads = None,
    log_level: LogLevel = None,
) -> None:
    """Run all three services on this machine until Ctrl-C.

    Logs go to stderr: columns in a terminal, JSON lines elsewhere. A last line says when the stack is ready. Each
    service reads settings that have no option here from TANDEM_VISION_, TANDEM_LANGUAGE_ or TANDEM_GATEWAY_ variables.
    """
    require_extras("tandem up", "gateway", "stages")
    from tandem.commands.log_view import log_view
    from tandem.stack import Stack, StackConfig, interrupt_on_signals

    config = StackConfig(
        models=models,
        release=release or newest_release(models),
        port=port,
        precision=precision,
        device=device,
        threads=threads,
        log_level=log_level,
    )
    view = log_view(sys.stderr)
    stack = Stack(config, on_log=view.log)
    interrupt_on_signals()
    try:
        with view.starting(config.release):
            stack.start()
        view.ready(stack.address, config.release, stack.metrics_address("language"))
        stack.wait()
    except KeyboardInterrupt:
        view.stopping()
    finally:
        stack.stop()


def newest_release(models: Path) -> str:
    """Return the tag of the highest version in the store.

    Raises:
        NotFound: the store has no checkpoint.
    """
    store = ModelStore(models)
    tags = [parse_tag(tag) for tag in store.tags()]
    if not tags:
        raise NotFound(
            f"There is no checkpoint in {store.root}; `tandem checkpoint new` makes one, --models names another folder."
        )
    return str(max(tags, key=lambda tag: (tag.major, tag.minor, tag.patch, tag.name)))
