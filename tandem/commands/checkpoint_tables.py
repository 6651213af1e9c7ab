"""The tables of `tandem checkpoint`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tandem.commands.models import sampling_text, short_count
from tandem.commands.terminal import ForeignTextConsole

if TYPE_CHECKING:  # these modules need an extra
    from checkpoint.importing import Imported
    from checkpoint.inspection import Inspection, TensorFacts
    from checkpoint.listing import StoreEntry
    from checkpoint.verification import Check

_WIDTH_IN_A_FILE = 160  # characters, if the output is not a terminal
_DIGEST_CHARS = 12  # hex digits that tell checkpoints apart


def show(*renderables: RenderableType) -> None:
    """Print to stdout, without truncating tensor names in a pipe."""
    console = ForeignTextConsole(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_IN_A_FILE
    for renderable in renderables:
        console.print(renderable)


def checks(tag: str, found: Sequence[Check]) -> Table:
    """Return the table of `verify`."""
    table = Table(title=f"{tag}", title_justify="left")
    table.add_column("subject", no_wrap=True)
    table.add_column("size", justify="right")
    table.add_column("SHA-256 as found", no_wrap=True)
    table.add_column("verdict")
    for check in found:
        verdict = Text(check.problem, "red") if check.problem else Text("as in the manifest", "green")
        table.add_row(Text(check.subject), size(check.num_bytes), check.digest.hex() if check.digest else "-", verdict)
    return table


def store(entries: Sequence[StoreEntry]) -> Table:
    """Return the table of `tags`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tag", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("low bits", no_wrap=True)
    for column in ("parameters", "size", "files"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("vision half", "language half"):
        table.add_column(column, no_wrap=True)
    for entry in entries:
        if entry.problem is not None:
            table.add_row(entry.tag, Text(entry.problem, "red"))
            continue
        digests = (digest.hex()[:_DIGEST_CHARS] for digest in (entry.vision_digest, entry.language_digest))
        count = short_count(entry.num_parameters)
        facts = (entry.kind, entry.quantization or "-", count, size(entry.num_bytes), str(entry.num_files))
        table.add_row(entry.tag, *facts, *digests)
    return table


def imported(made: Imported) -> Table:
    """Return the table of `import`."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("fact", no_wrap=True)
    table.add_column("value")
    table.add_row("kind", made.config.kind)
    table.add_row("parameters", ", ".join(f"{half} {short_count(count)}" for half, count in made.parameters.items()))
    copied = made.num_files - made.num_linked
    how = ", ".join(f"{count} {word}" for count, word in ((made.num_linked, "linked"), (copied, "copied")) if count)
    resumed = f", {made.num_resumed} done before the interruption" if made.num_resumed else ""
    table.add_row("weights", f"{size(made.num_bytes)}, files: {how}{resumed}")
    table.add_row("sampling", sampling_text(made.config.default_sampling.model_dump()))
    for half in made.parameters:
        table.add_row(f"{half} half", made.manifest.half_digest(half).hex()[:_DIGEST_CHARS])
    return table


def inspection(found: Inspection) -> list[Table]:
    """Return the tables of `inspect`: tensors, model, images."""
    return [_modules(found), _facts(found), *([_images(found)] if found.images else [])]


def size(num_bytes: int) -> str:
    """Return a size in powers of 1000: '13.40 GB'."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes} B"


def _modules(found: Inspection) -> Table:
    kind = "preset without weights" if found.disk_bytes is None else "checkpoint"
    table = Table(title=f"{found.source}, {kind}; N is the layer", title_justify="left")
    table.add_column("tensor", no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("shape", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("role")
    part = None
    for row in found.rows:
        if part not in (None, row.pattern.split(".", 1)[0]):
            table.add_section()
        part = row.pattern.split(".", 1)[0]
        count = f"{row.num_parameters:,}"
        table.add_row(row.pattern, str(row.count), _shape(row.shape), row.dtype or "-", count, row.role)
    return table


def _facts(found: Inspection) -> Table:
    from checkpoint.memory import COUNTING_RULE

    table = Table(title="whole model", title_justify="left", show_header=False)
    table.add_column("fact", no_wrap=True)
    table.add_column("value")
    for part, count in found.parameters.items():
        table.add_row(f"parameters, {part}", f"{count:,}")
    table.add_row("parameters, total", f"{found.num_parameters:,}")
    table.add_section()
    if found.quantization:
        table.add_row("matrices of the decoder", found.quantization)
    table.add_row("resampler's query", _tensor(found.query) if found.query else "none, patches become visual tokens")
    table.add_row("first layer's Q projection", _tensor(found.first_q_projection))
    group = found.num_heads // found.num_kv_heads
    table.add_row("attention heads", f"{found.num_heads} query on {found.num_kv_heads} key-value: GQA {group} to 1")
    saved = found.parameters_saved_by_tying
    tied = f"tied to the embedding, which saves {saved:,} parameters, {size(2 * saved)} in bf16"
    table.add_row("head", tied if found.tied_head else "a separate matrix, not tied to the embedding")
    table.add_row("visual tokens of an image", _visual_tokens(found))
    table.add_row("sampling, if a request names none", sampling_text(found.default_sampling))
    table.add_section()
    on_disk = "no weights" if found.disk_bytes is None else size(found.disk_bytes)
    table.add_row("weights on disk", on_disk)
    for precision, num_bytes in found.weight_bytes.items():
        table.add_row(f"weights in memory, {precision}", size(num_bytes))
    table.add_row("", Text(COUNTING_RULE, "dim"))
    whole = size(found.kv_bytes_per_token * found.context_length)
    per_token = f"{found.kv_bytes_per_token:,} bytes a token; {whole} for a context of {found.context_length:,}"
    table.add_row("KV cache, bf16", per_token)
    return table


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _tensor(facts: TensorFacts) -> str:
    figures = "" if facts.mean is None else f", mean {facts.mean:+.2e}, std {facts.std:.4f}, {facts.dtype}"
    return f"{facts.name}  {_shape(facts.shape)}{figures}"


def _visual_tokens(found: Inspection) -> str:
    """Return number and width of an image's visual tokens."""
    count = "by its size, each of" if found.num_visual_tokens is None else f"{found.num_visual_tokens} x"
    levels = f"{found.num_levels} levels x " if found.num_levels > 1 else ""
    return f"{count} {levels}{found.visual_token_width}"


def _images(found: Inspection) -> Table:
    table = Table(title="visual tokens by image size", title_justify="left")
    for column in ("image", "visual tokens", "bytes in bf16, all levels"):
        table.add_column(column, justify="right", no_wrap=True)
    for image in found.images:
        memory = f"{image.num_bytes:,}"
        table.add_row(f"{image.width} x {image.height}", f"{image.num_visual_tokens:,}", memory)
    return table
