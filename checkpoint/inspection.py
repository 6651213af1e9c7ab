"""Describe a model: tensors, parameters, memory.

A configuration is enough. Weight files add types and statistics, which need torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoint.checks import check_weights
from checkpoint.config import read_config
from checkpoint.families import EMBEDDING, HALVES, QUERY, ModelConfig, TensorSpec, layout, without_quantization
from checkpoint.memory import PRECISIONS, kv_bytes_per_token, visual_token_bytes, weight_bytes
from checkpoint.stored_tensor import num_bytes
from checkpoint.weight_files import WeightFiles, open_folder

FIRST_Q_PROJECTION = "language_model.layers.0.self_attn.q_proj.weight"
# Width and height of the images whose visual tokens are counted, pixels.
IMAGE_SIZES = ((256, 256), (512, 512), (640, 480), (1024, 1024), (1920, 1080))
_LAYER_NUMBER = re.compile(r"\.\d+\.")


@dataclass(frozen=True, slots=True)
class Row:
    """The tensors of one name pattern, one per layer."""

    pattern: str  # N stands for the layer's number
    count: int
    shape: tuple[int, ...]
    dtype: str | None  # as stored, several joined by '/'. None without weights.
    role: str
    num_parameters: int  # of all these tensors, 0 for scales


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """Type, shape and statistics of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None  # None, like mean and std, without weights
    mean: float | None
    std: float | None


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The visual tokens of an image."""

    width: int  # pixels
    height: int
    num_visual_tokens: int
    num_bytes: int  # of its visual tokens in bf16, with all levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A description of one checkpoint or preset."""

    source: str  # tag or preset
    kind: str  # the family and its variant
    quantization: str | None  # of the decoder's matrices, such as 'w4a16 g128'. None: they have a float type.
    rows: list[Row]
    parameters: dict[str, int]  # by part
    num_parameters: int
    query: TensorFacts | None  # of the resampler. None without a resampler.
    first_q_projection: TensorFacts
    num_heads: int
    num_kv_heads: int
    tied_head: bool
    parameters_saved_by_tying: int  # 0 with a separate head
    num_visual_tokens: int | None  # of one image. None if they depend on its size.
    num_levels: int  # vectors of one visual token
    visual_token_width: int  # elements of one such vector
    images: list[ImageFacts]  # of several sizes. Empty if the size does not matter.
    default_sampling: dict[str, float | None]  # options of requests that leave them out
    weight_bytes: dict[str, int]  # in memory, by precision: as they are with 8 or 4 bits, then as they would be
    kv_bytes_per_token: int
    context_length: int
    disk_bytes: int | None  # of the weight files. None without weights.


def inspect_preset(name: str, config: ModelConfig) -> Inspection:
    """Describe a model without weights."""
    return _inspect(name, config, None)


def inspect_checkpoint(folder: Path) -> Inspection:
    """Describe a checkpoint.

    Reads the elements of two tensors only. Compares nothing with the manifest, see `verify`.

    Raises:
        FailedPrecondition: configuration or weights cannot be read, or do not fit together.
    """
    config, files = read_config(folder), open_folder(folder)
    check_weights(files, config, HALVES, folder.name)
    return _inspect(folder.name, config, files)


def _inspect(source: str, config: ModelConfig, files: WeightFiles | None) -> Inspection:
    specs = layout(config)
    float_specs = layout(without_quantization(config))
    by_name = {spec.name: spec for spec in float_specs}
    tied, quantization = config.language.tied_embeddings, config.language.quantization
    as_it_is = {str(quantization): sum(num_bytes(files[spec.name]) for spec in specs)} if quantization and files else {}
    return Inspection(
        source=source,
        kind=config.kind,
        quantization=None if quantization is None else str(quantization),
        rows=_rows(specs, files),
        parameters={
            part: sum(spec.num_parameters for spec in specs if spec.name.startswith(prefixes))
            for part, prefixes in config.parts.items()
        },
        num_parameters=sum(spec.num_parameters for spec in specs),
        query=_facts(by_name[QUERY], files, config) if QUERY in by_name else None,
        first_q_projection=_facts(by_name[FIRST_Q_PROJECTION], files, config),
        num_heads=config.language.num_heads,
        num_kv_heads=config.language.num_kv_heads,
        tied_head=tied,
        parameters_saved_by_tying=by_name[EMBEDDING].num_parameters if tied else 0,
        num_visual_tokens=config.num_visual_tokens,
        num_levels=config.num_levels,
        visual_token_width=config.language.width,
        images=_images(config),
        default_sampling=config.default_sampling.model_dump(),
        weight_bytes=as_it_is | {precision: weight_bytes(float_specs, precision) for precision in PRECISIONS},
        kv_bytes_per_token=kv_bytes_per_token(config.language),
        context_length=config.language.context_length,
        disk_bytes=files.num_bytes() if files is not None else None,
    )


def _images(config: ModelConfig) -> list[ImageFacts]:
    if config.num_visual_tokens is not None:
        return []
    counts = [(width, height, config.visual_tokens_of(width, height)) for width, height in IMAGE_SIZES]
    return [ImageFacts(width, height, count, count * visual_token_bytes(config)) for width, height, count in counts]


def _rows(specs: Sequence[TensorSpec], files: WeightFiles | None) -> list[Row]:
    groups: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        groups.setdefault(_LAYER_NUMBER.sub(".N.", spec.name), []).append(spec)
    return [
        Row(
            pattern=pattern,
            count=len(group),
            shape=group[0].shape,
            dtype=None if files is None else "/".join(sorted({files[spec.name].dtype for spec in group})),
            role=group[0].role,
            num_parameters=sum(spec.num_parameters for spec in group),
        )
        for pattern, group in groups.items()
    ]


def _facts(spec: TensorSpec, files: WeightFiles | None, config: ModelConfig) -> TensorFacts:
    if files is None:
        return TensorFacts(spec.name, spec.shape, None, None, None)
    # Here, because presets are described without torch.
    from checkpoint.compressed_tensors import take_weight
    from checkpoint.lowbit import LowBitWeight
    from checkpoint.torch_tensors import as_torch

    stored = {name: as_torch(files[name]) for name in files if name.startswith(spec.name)}
    if f"{spec.name}_scale" not in stored:
        (tensor,) = stored.values()
        elements, dtype = tensor.float(), files[spec.name].dtype
    else:
        quantization = config.language.quantization
        weight = take_weight(stored, spec.name.removesuffix(".weight"), quantization.scheme if quantization else None)
        assert isinstance(weight, LowBitWeight)
        elements, dtype = weight.dequantize(), str(quantization)
    return TensorFacts(spec.name, spec.shape, dtype, elements.mean().item(), elements.std().item())
