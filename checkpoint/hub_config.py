"""Read the configuration of a Hub folder. Needs no torch.

The only place that lists which models can be imported. Fields that change the arithmetic must have a supported value.
Code in the folder is never run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from chassis.errors import FailedPrecondition
from chassis.validation import problems
from checkpoint.config import CONFIG_FILE, read_config
from checkpoint.families import LanguageConfig, ModelConfig, Qwen3VisionConfig, Qwen3VLConfig
from checkpoint.hub_files import Generation, ModelType, Preprocessor, Processor, Qwen3VL, TowerConfig, token_ids
from checkpoint.hub_quantization import CompressedTensors

GENERATION_FILE = "generation_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # newer releases of transformers put the image processor into it

# Returns the token with an id, None if there is none.
TokenOf = Callable[[int], str | None]

_File = TypeVar("_File", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class _HubFolder:
    """A Hub folder with its tokens."""

    folder: Path
    token_of: TokenOf

    def read(self, name: str, form: type[_File]) -> _File:
        """Return one file.

        Raises:
            FailedPrecondition: BAD_CHECKPOINT, the file is missing, or not valid. The message names every bad field.
        """
        try:
            return form.model_validate_json((self.folder / name).read_bytes())
        except OSError as error:
            raise self.bad(f"has no readable {name}") from error
        except ValidationError as error:
            raise self.bad(f"has a {name} that cannot be used: {'; '.join(problems(error))}") from error

    def token(self, name: str, token_id: int) -> str:
        """Return the token that a field names by id."""
        token = self.token_of(token_id)
        if token is None:
            raise self.bad(f"has no token with the id {token_id}, which {CONFIG_FILE} gives as {name}")
        return token

    def bad(self, problem: str) -> FailedPrecondition:
        return FailedPrecondition(f"The folder {self.folder.name} {problem}.", reason="BAD_CHECKPOINT")


def needed_files(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the files to read, with their replacements."""
    try:
        foreign = ModelType.model_validate_json((folder / CONFIG_FILE).read_bytes()).model_type is not None
    except (OSError, ValidationError):  # reading it again tells the reason
        foreign = True
    needed: dict[str, tuple[str, ...]] = {CONFIG_FILE: ()}
    return {**needed, GENERATION_FILE: (), PREPROCESSOR_FILE: (PROCESSOR_FILE,)} if foreign else needed


def read_hub_config(folder: Path, token_of: TokenOf) -> ModelConfig:
    """Return the configuration of a Hub folder in our form.

    A `config.json` without a `model_type` must have our form already.

    Args:
        folder: of the release.
        token_of: looks up the token with an id.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, a file is missing or not valid, the model is of an unsupported type, or a
            field has an unsupported value. The message names every bad field of a file.
    """
    hub = _HubFolder(folder, token_of)
    found = hub.read(CONFIG_FILE, ModelType).model_type
    if found is None:
        return read_config(folder)
    if found not in _READERS:
        names = ", ".join(_READERS)
        raise hub.bad(f"holds a model of type {found!r}, but only these can be imported: {names}")
    try:
        return _READERS[found](hub)
    except ValidationError as error:  # each field is fine, but they do not fit together
        raise hub.bad(f"describes a model that does not fit together: {'; '.join(problems(error))}") from error


def _qwen3_vl(hub: _HubFolder) -> Qwen3VLConfig:
    config, generation, images = hub.read(CONFIG_FILE, Qwen3VL), hub.read(GENERATION_FILE, Generation), _images(hub)
    text, tower = config.text_config, config.vision_config
    _compare(
        hub,
        {
            "vision_config.out_hidden_size": (tower.out_hidden_size, text.hidden_size),
            "vision_config.patch_size": (tower.patch_size, images.patch_size),
            "vision_config.spatial_merge_size": (tower.spatial_merge_size, images.merge_size),
            "vision_config.temporal_patch_size": (tower.temporal_patch_size, images.temporal_patch_size),
        },
    )
    eos_token_ids = token_ids(generation.eos_token_id) or token_ids(text.eos_token_id)
    if not eos_token_ids:
        raise hub.bad(f"names no eos_token_id in {GENERATION_FILE}")
    decoder = _decoder(config, eos_token_ids)
    if config.quantization_config is not None:
        decoder = _quantized(hub, decoder, config.quantization_config)
    return Qwen3VLConfig(
        image_token=hub.token("image_token_id", config.image_token_id),
        default_sampling=generation.sampling(),
        vision=_tower(tower, images),
        language=decoder,
    )


def _tower(tower: TowerConfig, images: Preprocessor) -> Qwen3VisionConfig:
    return Qwen3VisionConfig(
        patch_size=tower.patch_size,
        temporal_patch_size=tower.temporal_patch_size,
        merge_size=tower.spatial_merge_size,
        width=tower.hidden_size,
        num_layers=tower.depth,
        num_heads=tower.num_heads,
        mlp_width=tower.intermediate_size,
        num_positions=tower.num_position_embeddings,
        deepstack_layers=tower.deepstack_visual_indexes,
        rope_theta=tower.rope_parameters.rope_theta,
        image_mean=images.image_mean,
        image_std=images.image_std,
        min_pixels=images.budget[0],
        max_pixels=images.budget[1],
    )


def _decoder(config: Qwen3VL, eos_token_ids: tuple[int, ...]) -> LanguageConfig:
    text = config.text_config
    return LanguageConfig(
        width=text.hidden_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        mlp_width=text.intermediate_size,
        vocab_size=text.vocab_size,
        context_length=text.max_position_embeddings,
        norm_eps=text.rms_norm_eps,
        rope_theta=text.theta,
        qk_norm=True,
        tied_embeddings=config.tied_embeddings,
        mrope_section=text.rope.mrope_section,
        num_deepstack_levels=len(config.vision_config.deepstack_visual_indexes),
        eos_token_ids=eos_token_ids,
    )


def _quantized(hub: _HubFolder, decoder: LanguageConfig, found: CompressedTensors) -> LanguageConfig:
    """Return the decoder with its low-bit matrices."""
    try:
        fields = decoder.model_dump() | {"quantization": found.quantization(decoder)}
        return LanguageConfig.model_validate(fields)
    except ValidationError as error:
        problem = "; ".join(problems(error))
    except ValueError as error:
        problem = str(error)
    raise hub.bad(f"has a quantization_config in {CONFIG_FILE} that cannot be used: {problem}")


def _images(hub: _HubFolder) -> Preprocessor:
    """Return the image processor's settings, from either file."""
    if not (hub.folder / PREPROCESSOR_FILE).exists() and (hub.folder / PROCESSOR_FILE).exists():
        return hub.read(PROCESSOR_FILE, Processor).image_processor
    return hub.read(PREPROCESSOR_FILE, Preprocessor)


def _compare(hub: _HubFolder, pairs: Mapping[str, tuple[int, int]]) -> None:
    """Check values that are stored twice."""
    wrong = [f"{name} is {one}, not {other}" for name, (one, other) in pairs.items() if one != other]
    if wrong:
        raise hub.bad(f"has a {CONFIG_FILE} that does not fit its other files: {'; '.join(wrong)}")


_READERS: dict[str, Callable[[_HubFolder], ModelConfig]] = {"qwen3_vl": _qwen3_vl}
