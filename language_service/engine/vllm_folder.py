"""Write a language half as vLLM reads models: in the Hub's form.

The files hold verified weights, so that vLLM never reads the model store. A modality embedding becomes part of the text
embedding, which vLLM looks up itself.
"""

import json
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.families import EMBEDDING, HEAD, LanguageConfig, ModelConfig, Qwen3VLConfig
from checkpoint.hub_form import decoder_fields, hub_name, preprocessor_fields, tower_fields
from checkpoint.manifest import TOKENIZER_FILE
from checkpoint.tokenizer import read_tokenizer
from checkpoint.weight_writers import PlannedTensor, write_weights

MODALITY = "language_model.modality_embedding.weight"  # [2, D]: added to text, added to images
VIDEO_TOKEN = "<|video_pad|>"


def write_vllm_folder(
    folder: Path,
    config: ModelConfig,
    tensors: MutableMapping[str, Tensor],
    tokenizer_json: str,
    *,
    dtype: torch.dtype,
) -> Tensor | None:
    """Write configuration, weights and tokenizer into an empty folder.

    Takes the memory of one more tensor.

    Args:
        folder: the empty folder.
        config: of the model.
        tensors: of the language half by name. Empty afterwards.
        tokenizer_json: content of `tokenizer.json`.
        dtype: of the tensors.

    Returns:
        The vector [D] to add to the embeddings of images, None without one.

    Raises:
        FailedPrecondition: reason 'NOT_SUPPORTED', vLLM has no such model.
    """
    _check_supported(config)
    modality_2D = tensors.pop(MODALITY, None)
    specs = [spec for spec in config.tensors() if spec.half == "language" and spec.name != MODALITY]
    if modality_2D is not None:
        if config.language.tied_embeddings:  # the head must stay as it is
            embedding = next(spec for spec in specs if spec.name == EMBEDDING)
            specs.append(replace(embedding, name=HEAD))
            tensors[HEAD] = tensors[EMBEDDING]
        tensors[EMBEDDING] = tensors[EMBEDDING] + modality_2D[0]
    if isinstance(config, Qwen3VLConfig):
        config = _with_stub_tower(config)
        stub = [spec for spec in config.tensors() if spec.half == "vision"]
        tensors.update({spec.name: torch.zeros(spec.shape, dtype=dtype) for spec in stub})
        specs += stub
    names = {hub_name(spec.name, has_tower=isinstance(config, Qwen3VLConfig)): spec.name for spec in specs}
    plan = [PlannedTensor(replace(spec, name=name), dtype) for name, spec in zip(names, specs, strict=True)]
    write_weights(folder, "model", plan, lambda planned: tensors.pop(names[planned.spec.name]).contiguous())
    tensors.clear()
    (folder / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
    untied = modality_2D is not None or not config.language.tied_embeddings
    for name, content in _files(config, tokenizer_json, dtype=dtype, tied=not untied).items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    return None if modality_2D is None else modality_2D[1].clone()


def _check_supported(config: ModelConfig) -> None:
    language = config.language
    problem = None
    if language.quantization is not None:
        problem = "matrices of 8 or 4 bits as Tandem stores them"
    elif isinstance(config, Qwen3VLConfig):
        if not language.qk_norm or language.attention_bias or language.rope_scaling or language.modality_embedding:
            problem = "a Qwen3-VL decoder other than the released one"
    elif language.mrope_section or language.num_deepstack_levels:
        problem = "positions of three parts or DeepStack levels outside of Qwen3-VL"
    elif language.attention_bias and not language.qk_norm and language.head_dim * language.num_heads != language.width:
        problem = "biases together with heads that are not the width divided by their number"
    if problem:
        raise FailedPrecondition(
            f"vLLM has no model with {problem}, so serve this one with --engine tandem.", reason="NOT_SUPPORTED"
        )


def _with_stub_tower(config: Qwen3VLConfig) -> Qwen3VLConfig:
    """Return the model with a small tower.

    Without any tower, vLLM takes no DeepStack levels. This one has as many, and never computes. Eight processes can
    share its heads.
    """
    layers = tuple(range(config.num_levels - 1))
    size = {"width": 256, "num_heads": 8, "mlp_width": 256, "num_positions": 16}
    vision = config.vision.model_copy(update={**size, "num_layers": max(1, len(layers)), "deepstack_layers": layers})
    return config.model_copy(update={"vision": vision})


def _files(config: ModelConfig, tokenizer_json: str, *, dtype: torch.dtype, tied: bool) -> dict[str, dict[str, Any]]:
    """Return the JSON files of the folder by name."""
    tokenizer = read_tokenizer(tokenizer_json)
    end = tokenizer.id_to_token(config.language.eos_token_ids[0])
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end}
    }
    common = {"dtype": str(dtype).removeprefix("torch."), "tie_word_embeddings": tied}
    if not isinstance(config, Qwen3VLConfig):
        files["config.json"] = {**_decoder(config.language), **common}
        return files
    files["tokenizer_config.json"] |= {"processor_class": "Qwen3VLProcessor"}
    # vLLM asks for the ids of videos and of the marks around images, but uses neither: it is given no videos.
    image, video = (tokenizer.token_to_id(token) for token in (config.image_token, VIDEO_TOKEN))
    files["config.json"] = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": image,
        "video_token_id": image if video is None else video,
        **{f"{name}_token_id": tokenizer.token_to_id(f"<|{name}|>") for name in ("vision_start", "vision_end")},
        "text_config": {**_decoder(config.language), **common, "model_type": "qwen3_vl_text"},
        "vision_config": tower_fields(config),
        **common,
    }
    files["preprocessor_config.json"] = preprocessor_fields(config, image_processor_type="Qwen2VLImageProcessor")
    files["video_preprocessor_config.json"] = preprocessor_fields(config, video_processor_type="Qwen3VLVideoProcessor")
    return files


def _decoder(language: LanguageConfig) -> dict[str, Any]:
    kind, name = ("qwen3", "Qwen3") if language.qk_norm else ("llama", "Llama")
    if language.attention_bias and not language.qk_norm:
        kind, name = "qwen2", "Qwen2"  # the biases of Llama are also on the output
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": language.rope_theta}
    length = language.context_length
    scaling = language.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "linear":
            length = -int(-length // scaling.factor)  # of the positions before they are stretched
        else:
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context_length,
            }
    if language.mrope_section is not None:
        rope |= {"mrope_section": list(language.mrope_section), "mrope_interleaved": True}
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": kind,
        **decoder_fields(language),
        "max_position_embeddings": length,
        "rope_parameters": rope,
        "use_sliding_window": False,
        "eos_token_id": list(language.eos_token_ids),
        "bos_token_id": None,
    }
