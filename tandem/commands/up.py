"""`tandem up`: run all services on this machine."""

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
HttpPort = Annotated[
    int | None,
    typer.Option(
        "--http",
        min=0,
        max=65535,
        metavar="PORT",
        help="Also serve OpenAI's API and a page by HTTP on this port; 0 picks a free one.",
    ),
]
Precision = Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Type both stages compute in.")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="Device of both stages: cpu or cuda:0.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of each stage.")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"] | None, typer.Option(help="Lowest level to log.")]


def up(
    models: Models = Path("models"),
    release: Release = None,
    port: Port = 50050,
    http_port: HttpPort = None,
    precision: Precision = None,
    device: Device = None,
    threads: Threads = None,
    log_level: LogLevel = None,
) -> None:
    """Run all services on this machine until Ctrl-C.

    Logs go to stderr: columns in a terminal, JSON lines elsewhere. A last line says when the stack is ready. Each
    service reads settings that have no option here from TANDEM_VISION_, TANDEM_LANGUAGE_, TANDEM_GATEWAY_ or
    TANDEM_HTTP_ variables.
    """
    require_extras("tandem up", "gateway", "stages", *(["http"] if http_port is not None else []))
    from tandem.commands.log_view import log_view
    from tandem.stack import Stack, StackConfig, interrupt_on_signals

    config = StackConfig(
        models=models,
        release=release or newest_release(models),
        port=port,
        http_port=http_port,
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
        page = f"http://{stack.address_of('http')}/" if http_port is not None else None
        view.ready(stack.address, config.release, stack.metrics_address("language"), page)
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
