"""A released Qwen3-VL model as the Hub has it, with random weights.

vLLM and transformers read the folder as it is, and `tandem checkpoint import` turns it into a release. The tokenizer is
made up: one token per byte, then short words, so that every generated token is visible text.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from checkpoint.families import Qwen3VLConfig
from checkpoint.hub_form import decoder_fields, hub_name, preprocessor_fields, tower_fields
from checkpoint.initial import RandomTensors

_SHARD_BYTES = 1 << 30
_IMAGE_TOKEN, _VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    _IMAGE_TOKEN,
    _VIDEO_TOKEN,
)
# The released template's output for messages of text and images.
_CHAT_TEMPLATE = """
{%- for message in messages -%}
    {{- "<|im_start|>" + message.role + "\\n" -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {%- if part.type == "image" or part.type == "image_url" -%}
                {{- "<|vision_start|><|image_pad|><|vision_end|>" -}}
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


def make_hub_folder(folder: Path, config: Qwen3VLConfig, *, seed: int = 0) -> None:
    """Write the folder atomically, unless it exists."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    _write_weights(partial, config, seed)
    tokenizer = _tokenizer(config.language.vocab_size)
    tokenizer.save(str(partial / "tokenizer.json"))
    ids = {token: number for token, number in tokenizer.get_vocab().items() if token in _SPECIAL_TOKENS}
    files: dict[str, dict[str, Any]] = {
        "config.json": _config(config, ids),
        "generation_config.json": _generation_config(ids),
        "preprocessor_config.json": preprocessor_fields(config, image_processor_type="Qwen2VLImageProcessorFast"),
        "video_preprocessor_config.json": preprocessor_fields(config, video_processor_type="Qwen3VLVideoProcessor"),
        "tokenizer_config.json": _tokenizer_config(),
    }
    for name, content in files.items():
        (partial / name).write_text(json.dumps(content, indent=1) + "\n")
    (partial / "chat_template.jinja").write_text(_CHAT_TEMPLATE.lstrip())
    partial.rename(folder)


def _write_weights(folder: Path, config: Qwen3VLConfig, seed: int) -> None:
    """Write the tensors in shards, with their index."""
    tensors = RandomTensors(config, seed=seed, dtype=torch.bfloat16)
    shards: list[list[str]] = [[]]
    shard_bytes = total_bytes = 0
    for spec in config.tensors():
        num_bytes = 2 * spec.num_parameters
        if shards[-1] and shard_bytes + num_bytes > _SHARD_BYTES:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(spec.name)
        shard_bytes += num_bytes
        total_bytes += num_bytes
    weight_map = {}
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        shard: dict[str, Tensor] = {hub_name(name, has_tower=True): tensors[name] for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index_json = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json, indent=1) + "\n")


def _tokenizer(vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE without merges, with made-up words.

    The special tokens are the last ids.
    """
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"w{index}" for index in range(len(tokens), vocab_size - len(_SPECIAL_TOKENS))]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS])
    return tokenizer


def _config(config: Qwen3VLConfig, ids: dict[str, int]) -> dict[str, Any]:
    language = config.language
    rope = {
        "rope_type": "default",
        "rope_theta": language.rope_theta,
        "mrope_section": list(language.mrope_section or ()),
        "mrope_interleaved": True,
    }
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "bfloat16",
        "image_token_id": ids[_IMAGE_TOKEN],
        "video_token_id": ids[_VIDEO_TOKEN],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": language.tied_embeddings,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "dtype": "bfloat16",
            "rope_theta": language.rope_theta,
            "rope_scaling": {key: value for key, value in rope.items() if key != "rope_theta"},
            **decoder_fields(language),
            "attention_dropout": 0.0,
            "use_cache": True,
            "tie_word_embeddings": language.tied_embeddings,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        "vision_config": tower_fields(config),
    }


def _generation_config(ids: dict[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.0,
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Qwen3VLProcessor",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(_SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 262_144,
    }
