"""`tandem probes`: check files of probes, and ask a release."""

import asyncio
import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from checkpoint.store import ModelStore
from tandem.client import AsyncClient
from tandem.commands.connection import DEFAULT_ADDRESS, Address, ApiKey, Ca, Cert, Key, TimeoutS
from tandem.commands.terminal import show, table_console

if TYPE_CHECKING:
    from checkpoint.probes import Probes, Verdicts
    from tandem.commands.probe_answers import Difference

app = typer.Typer(no_args_is_help=True, help="Check questions with known answers, and ask a release.")

_SHOWN_WRONG = 20

Models = Annotated[
    Path, typer.Option("--models", metavar="FOLDER", help="The model store: a folder of checkpoint folders.")
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="The probes, as JSON lines.")]
Release = Annotated[str, typer.Option("--release", metavar="TAG", help="The release to ask, as the gateway offers it.")]
Against = Annotated[
    str | None,
    typer.Option("--against", metavar="TAG", help="Another release to ask, such as the one it was made from."),
]
ProbesFile = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="The probes. Default: those in the release's folder.")
]
GraderTarget = Annotated[
    str | None,
    typer.Option(
        "--grader", metavar="TARGET", help="grpc://host:port or command line of the grader, for probes that need one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.command()
def check(file: File, json_output: Json = False) -> None:
    """Check a file of probes, with its images."""
    from checkpoint.probes import read_probes_file

    probes = read_probes_file(file)
    judges = Counter(type(probe.judge).__name__.lower() for probe in probes.probes)
    slices = Counter(name for probe in probes.probes for name in probe.slice_names)
    if json_output:
        facts = {"probes": len(probes.probes), "images": len(probes.images), "judges": judges, "slices": slices}
        typer.echo(json.dumps(facts))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("slice")
    table.add_column("probes", justify="right")
    table.add_row("all", f"{len(probes.probes):,}")
    for name, number in sorted(slices.items()):
        table.add_row(name, f"{number:,}")
    table_console().print(table)
    typer.echo(f"{len(probes.images):,} images; judges: {', '.join(f'{name} {n:,}' for name, n in judges.items())}")


@app.command()
def add(
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Tag of a checkpoint without probes.")],
    file: File,
    models: Models = Path("models"),
) -> None:
    """Add probes to a checkpoint and its manifest."""
    from checkpoint.release_probes import add_probes

    probes = add_probes(ModelStore(models).folder(tag), file)
    typer.echo(f"added {len(probes.probes):,} probes to {models / tag}")


@app.command()
def run(
    release: Release,
    against: Against = None,
    file: ProbesFile = None,
    models: Models = Path("models"),
    grader: GraderTarget = None,
    json_output: Json = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 600.0,
) -> None:
    """Ask a release the probes and list wrong answers.

    With --against, also show how much more often it is wrong than another release.
    """
    from tandem.commands.probe_answers import compare

    probes = _read(file, models, release)
    connection = {"ca": ca, "cert": cert, "key": key, "api_key": api_key, "timeout_s": timeout_s}
    releases = [release] if against is None else [release, against]
    asked = asyncio.run(_ask(address, connection, releases, probes, grader, quiet=json_output))
    difference = compare(asked[1], asked[0]) if against is not None else None
    if json_output:
        show(json.dumps(_plain(release, asked[0], against, difference), ensure_ascii=False))
        return
    console = table_console()
    console.print(_table(release, asked[0]))
    wrong = asked[0].wrong()
    if wrong:
        console.print(_wrong_table(asked[0]))
    if len(wrong) > _SHOWN_WRONG:
        typer.echo(f"and {len(wrong) - _SHOWN_WRONG} more; --json has all")
    if difference is not None:
        show(difference.sentence(release, str(against)))


def _read(file: Path | None, models: Path, release: str) -> "Probes":
    """Return the probes to ask.

    Raises:
        FailedPrecondition: reason 'NO_PROBES'.
    """
    from checkpoint.probes import read_probes_file
    from checkpoint.release_probes import read_release_probes
    from checkpoint.tags import split_release
    from tandem.errors import FailedPrecondition

    if file is not None:
        return read_probes_file(file)
    probes = read_release_probes(ModelStore(models).folder(split_release(release)[1]))
    if not probes.probes:
        raise FailedPrecondition(
            f"The release {release} has no probes: name a file with --file, or add one with `tandem probes add`.",
            reason="NO_PROBES",
        )
    return probes


async def _ask(
    address: str, connection: dict[str, Any], releases: list[str], probes: "Probes", target: str | None, *, quiet: bool
) -> list["Verdicts"]:
    from checkpoint.probes import open_grader
    from tandem.commands.probe_answers import ask_probes

    grader = open_grader(target) if target is not None else None
    try:
        with ExitStack() as stack:
            progress = stack.enter_context(Progress(console=table_console(), transient=True, disable=quiet))
            async with AsyncClient(address, **connection) as client:
                asked = []
                for release in releases:
                    bar = progress.add_task(release, total=len(probes.probes))
                    advance = lambda bar=bar: progress.advance(bar)  # noqa: E731
                    asked.append(await ask_probes(client, release, probes, grader, advance))
                return asked
    finally:
        if grader is not None:
            await grader.close()


def _table(release: str, verdicts: "Verdicts") -> Table:
    table = Table(title=release, box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.add_column("slice")
    for column in ("right", "wrong", "unjudged", "share right"):
        table.add_column(column, justify="right")
    for score in verdicts.scores():
        share = f"{100 * score.share_right:.1f} %" if score.right + score.wrong else "-"
        table.add_row(score.slice or "all", f"{score.right}", f"{score.wrong}", f"{score.unjudged}", share)
    return table


def _wrong_table(verdicts: "Verdicts") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("probe", "verdict", "answer"):
        table.add_column(column, overflow="fold")
    for one in verdicts.wrong()[:_SHOWN_WRONG]:
        table.add_row(one.probe.id, one.verdict, one.problem or one.answer)
    return table


def _plain(release: str, verdicts: "Verdicts", against: str | None, difference: "Difference | None") -> dict[str, Any]:
    wrong = [
        {"id": one.probe.id, "verdict": one.verdict, "answer": one.answer, "problem": one.problem}
        for one in verdicts.wrong()
    ]
    scores = [
        {"slice": score.slice, "right": score.right, "wrong": score.wrong, "unjudged": score.unjudged}
        for score in verdicts.scores()
    ]
    plain: dict[str, Any] = {"release": release, "scores": scores, "not_right": wrong}
    if difference is not None:
        count = difference.count
        plain["against"] = {
            "release": against,
            "judged": count.total,
            "lost": count.lost,
            "gained": count.gained,
            "drop_low": difference.low,
            "drop_high": difference.high,
            "lost_ids": difference.lost,
        }
    return plain
