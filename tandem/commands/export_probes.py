"""Let a release answer its probes, and what was made of it."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint.probes import Probes, Verdicts
from checkpoint.release_probes import read_release_probes
from tandem.client import AsyncClient
from tandem.commands.probe_answers import Difference, ask_probes, compare
from tandem.errors import FailedPrecondition

if TYPE_CHECKING:
    from checkpoint.exports import Export

_BACKENDS = {"onnx": "onnxruntime", "openvino": "openvino"}  # that run an export, by its kind
_TIMEOUT_S = 600.0  # of one answer

OnStep = Callable[[str], None]


def read_probes(folder: Path) -> Probes:
    """Return a release's probes.

    Raises:
        FailedPrecondition: reason 'NO_PROBES'.
    """
    probes = read_release_probes(folder)
    if not probes.probes:
        raise FailedPrecondition(
            f"The release {folder.name} has no probes: add some with `tandem probes add`, or leave out --probes.",
            reason="NO_PROBES",
        )
    return probes


def compare_export(folder: Path, export: "Export", probes: Probes, on_step: OnStep) -> Difference:
    """Return the paired difference between torch's answers and the export's.

    Both run as a stack of their own on this machine, one after the other. Only the vision half differs.

    Args:
        folder: of the checkpoint.
        export: of its vision half.
        probes: to ask.
        on_step: called with the next step in words.

    Raises:
        Unavailable: a stack does not start. The message says why.
    """
    backend = _BACKENDS[export.kind]
    flags = ["--backend", backend, "--precision", export.precision]
    result = _answers(folder, probes, backend, flags, on_step)  # first, as it may not run on this machine
    return compare(_answers(folder, probes, "torch", ["--backend", "torch"], on_step), result)


def compare_checkpoints(source: Path, result: Path, probes: Probes, on_step: OnStep) -> Difference:
    """Return the paired difference between the answers of two checkpoints.

    Both run as a stack of their own on this machine, one after the other.

    Args:
        source: folder of the checkpoint that the other was made from.
        result: folder of the other, in the same model store.
        probes: to ask.
        on_step: called with the next step in words.

    Raises:
        Unavailable: a stack does not start. The message says why.
    """
    asked = _answers(result, probes, result.name, (), on_step)
    return compare(_answers(source, probes, source.name, (), on_step), asked)


def _answers(folder: Path, probes: Probes, name: str, vision_flags: Sequence[str], on_step: OnStep) -> Verdicts:
    from tandem.stack import Stack, StackConfig

    on_step(f"starting {folder.name} with {name}")
    config = StackConfig(models=folder.parent, release=folder.name, vision_flags=vision_flags)
    with Stack(config) as stack:
        number = 0

        def count() -> None:
            nonlocal number
            number += 1
            on_step(f"{name} answers {number} of {len(probes.probes)} probes")

        return asyncio.run(_ask(stack.address, folder.name, probes, count))


async def _ask(address: str, tag: str, probes: Probes, on_answer: Callable[[], None]) -> Verdicts:
    async with AsyncClient(address, timeout_s=_TIMEOUT_S) as client:
        return await ask_probes(client, tag, probes, None, on_answer)
