"""`tandem up`: the three services on this machine until Ctrl-C."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from checkpoint.store import ModelStore
from checkpoint.tags import parse_tag
from tandem.commands.log_view import log_view
from tandem.errors import NotFound
from tandem.stack import Stack, StackConfig, interrupt_on_signals


def up(
    models: Annotated[Path, typer.Option(help="The model store, a folder of checkpoints.")] = Path("models"),
    release: Annotated[
        str | None, typer.Option(help="Tag, or 'vision tag,language tag'; the newest of the store where left out.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one.")] = 50050,
    precision: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="Type both stages compute in.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where both stages compute: cpu or cuda:0.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each stage.")] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, typer.Option(help="Least level that is logged.")
    ] = None,
) -> None:
    """Start the vision service, the language service and the gateway on this machine; Ctrl-C stops them.

    Logs go to stderr: columns in a terminal, JSON lines elsewhere. It is ready when it says so. What is left out here
    is read by each service from its own TANDEM_VISION_, TANDEM_LANGUAGE_ and TANDEM_GATEWAY_ variables.
    """
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
    tags = [parse_tag(tag) for tag in ModelStore(models).tags()]
    if not tags:
        raise NotFound(
            f"There is no checkpoint in {models}; `tandem checkpoint new` makes one, --models names another folder."
        )
    return str(max(tags, key=lambda tag: (tag.major, tag.minor, tag.patch, tag.name)))
