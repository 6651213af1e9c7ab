"""`tandem ask IMAGE... "question"`: stream one answer."""

import asyncio
import dataclasses
import json
import mimetypes
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format

from tandem.client import AsyncClient, AsyncTextStream, GenerateOptions
from tandem.commands.connection import DEFAULT_ADDRESS, Address, ApiKey, Ca, Cert, Key, TimeoutS
from tandem.commands.report import timing_table
from tandem.commands.terminal import ForeignTextConsole, show
from tandem.errors import InvalidArgument
from tandem.v1 import gateway_pb2

QUESTION = "QUESTION"


ImagesAndQuestion = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE... QUESTION", help="Image files, if any, then the question."),
]
RequestFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json", help="Send this GatewayGenerateRequest in JSON instead."),
]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="Instructions before the question.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, max=2**32 - 1, metavar="N", help="Maximum tokens of the answer.")]
Temperature = Annotated[
    float | None, typer.Option(min=0, metavar="NUMBER", help="Randomness; 0 always picks the most likely token.")
]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, metavar="N", help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text. Repeatable.")]
Release = Annotated[str | None, typer.Option(metavar="TAG", help="Tag of the release that answers.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, once the answer is complete.")]


def ask(
    images_and_question: ImagesAndQuestion = None,
    request: RequestFile = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    stop: Stop = None,
    release: Release = None,
    json_output: Json = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    api_key: ApiKey = None,
    timeout_s: TimeoutS = 600.0,
) -> None:
    """Ask a question, with or without images.

    Example: tandem ask bag.png "What colour is the bag?"

    The answer streams to stdout. A table of timings follows on stderr.
    """
    given = {
        "system": system,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop": stop,
        "release": release,
    }
    options = GenerateOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]  # mypy does not follow names
    client = AsyncClient(address, ca=ca, cert=cert, key=key, api_key=api_key, timeout_s=timeout_s)
    if request is not None:
        _check_alone(images_and_question, options)
        start = partial(client.send, read_request(request), **options)
    else:
        images, question = _split(images_and_question or [])
        start = partial(client.generate, question, images=images, **options)
    try:
        asyncio.run(_stream(client, start, json_output))
    except KeyboardInterrupt:
        sys.stderr.write("\nCancelled.\n")
        raise typer.Exit(130) from None


def read_request(path: Path) -> gateway_pb2.GatewayGenerateRequest:
    """Read a request from JSON, with bytes in base64.

    Raises:
        InvalidArgument: the file is not UTF-8 or not a request. The message names the file.
        OSError: the file cannot be read.
    """
    try:
        return json_format.Parse(path.read_bytes().decode(), gateway_pb2.GatewayGenerateRequest())
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"The file {path} is not UTF-8: byte {error.start} cannot be read as text") from error
    except json_format.ParseError as error:
        reason = " ".join(str(error).split())
        raise InvalidArgument(f"The file {path} is not a GatewayGenerateRequest: {reason}") from error


def _check_alone(arguments: list[str] | None, options: GenerateOptions) -> None:
    others = [f"--{name.replace('_', '-')}" for name in options if name != "release"]
    if arguments or others:
        raise typer.BadParameter(
            f"it holds the whole request; leave out {', '.join(others) or QUESTION}.", param_hint="--request"
        )


def _split(arguments: list[str]) -> tuple[list[Path], str]:
    """Return the images and the question."""
    if not arguments:
        raise typer.BadParameter("it is missing.", param_hint=QUESTION)
    *images, question = arguments
    if os.path.isfile(question):  # Path.is_file would raise on a question too long for a file name
        raise typer.BadParameter(f"it is the last argument, but {question} is a file.", param_hint=QUESTION)
    if _names_an_image(question):
        raise typer.BadParameter(
            f"it is the last argument, but {question} looks like an image's file, and there is no such file.",
            param_hint=QUESTION,
        )
    return [Path(image) for image in images], question


def _names_an_image(text: str) -> bool:
    """Return whether a text looks like an image's file name."""
    kind, _ = mimetypes.guess_type(text)
    return kind is not None and kind.startswith("image/") and not any(map(str.isspace, text))


async def _stream(client: AsyncClient, start: Callable[[], AsyncTextStream], json_output: bool) -> None:
    """Print an answer as it arrives.

    asyncio turns Ctrl-C into a cancellation. In a blocking client it would interrupt gRPC's own code, which then may
    raise another error.
    """
    async with client, start() as stream:
        async for text in stream:
            if not json_output:
                show(text, end="")
    if json_output:
        show(json.dumps(dataclasses.asdict(stream.final), ensure_ascii=False))
        return
    show("")
    console = ForeignTextConsole(stderr=True)
    console.print(*([] if not console.is_terminal else [""]), timing_table(stream.final))
