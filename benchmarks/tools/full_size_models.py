"""Checkpoints of the full size, in bfloat16 and in fewer bits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from benchmarks.tools.random_low_bit import quantize_random
from checkpoint.families import ResamplerModelConfig, Scheme
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore

SchemeName = Literal["bf16", Scheme]

_GROUP = 32  # of 4 bits, as in the released files
_QUICK_LAYERS = 2
_SHARDS = 4


def make_checkpoint(models: Path, scheme: SchemeName, *, quick: bool) -> str:
    """Return the preset's tag. Write it if it is missing.

    Args:
        models: the model store.
        scheme: of the decoder's weights. All but bf16 are made from bf16, which is made first.
        quick: with few of the decoder's layers.
    """
    name = f"qwen3-vl-8b{f'-{_QUICK_LAYERS}-layers' if quick else ''}"
    source = f"{name}-v1.1.0"
    tag = source if scheme == "bf16" else f"{name}-{scheme}-v1.1.0"
    existing = ModelStore(models).tags() if models.exists() else []
    config = _config(quick=quick)
    if source not in existing:
        with _progress(source) as show:
            create_checkpoint(
                models, source, config, shards=_SHARDS, on_tensor=lambda _name, done, total: show(done, total)
            )
    if scheme != "bf16" and tag not in existing:
        num_parts = config.language.num_layers + 1  # the head is the last
        with _progress(tag) as show:
            quantize_random(
                models, source, tag, scheme, _GROUP, on_layer=lambda index, _errors: show(index + 1, num_parts)
            )
    return tag


def _config(*, quick: bool) -> ResamplerModelConfig:
    preset = RESAMPLER_PRESETS["qwen3-vl-8b"]
    layers = {"num_layers": _QUICK_LAYERS} if quick else {}
    return preset.model_copy(update={"language": preset.language.model_copy(update=layers)})


@contextmanager
def _progress(tag: str) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(tag, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
