"""Hub folders of tiny random Qwen3-VL models, written by transformers."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils import logging

# Qwen's special tokens. Their ids follow those of the 256 bytes.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOKEN_IDS = {token: 256 + position for position, token in enumerate(SPECIAL_TOKENS)}

# The released template without tools and videos.
CHAT_TEMPLATE = (Path(__file__).parent / "qwen3_vl_template.jinja").read_text(encoding="utf-8")

GENERATION = {
    "bos_token_id": TOKEN_IDS["<|endoftext|>"],
    "pad_token_id": TOKEN_IDS["<|endoftext|>"],
    "do_sample": True,
    "eos_token_id": [TOKEN_IDS["<|im_end|>"], TOKEN_IDS["<|endoftext|>"]],
    "top_p": 0.8,
    "top_k": 20,
    "temperature": 0.7,
    "repetition_penalty": 1.0,
}

PREPROCESSOR = {
    "size": {"longest_edge": 1_048_576, "shortest_edge": 16_384},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}


def write_hub_folder(
    folder: Path,
    *,
    tied: bool = True,
    max_shard_size: str = "200KB",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Path:
    """Write a folder as it is released, and return it.

    Args:
        folder: the new folder.
        tied: whether the head is the embedding, as for the released 2B and 4B.
        max_shard_size: of one weight file. A large size gives one file without an index.
        dtype: of the weights.
        seed: equal seeds give equal weights.
    """
    model: Any = random_model(tied=tied, seed=seed)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    edit_json(folder / "config.json", _as_released)
    write_json(folder / "generation_config.json", GENERATION)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


def random_model(*, tied: bool = True, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """Return a model with random parameters, norms and biases too."""
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 264,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5_000_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "hidden_size": 64,
        "depth": 4,
        "num_heads": 2,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    ids: dict[str, Any] = {f"{name}_token_id": TOKEN_IDS[f"<|{name}|>"] for name in ("vision_start", "vision_end")}
    ids |= {f"{name}_token_id": TOKEN_IDS[f"<|{name}_pad|>"] for name in ("image", "video")}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)
    model = Qwen3VLForConditionalGeneration(config)
    model.train(False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.empty_like(parameter).normal_(generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * drawn if is_scale else drawn * (0.02 if parameter.ndim == 1 else 0.1))
    return model


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer of bytes with Qwen's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_json(path: Path, content: object) -> None:
    """Write a JSON file as the Hub has it."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def edit_json(path: Path, change: Any) -> None:
    """Apply a function to the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def _as_released(config: dict[str, Any]) -> None:
    """Turn `config.json` into the released form, of transformers 4."""
    text, vision = config["text_config"], config["vision_config"]
    text["rope_scaling"] = text.pop("rope_parameters")
    text["rope_theta"] = text["rope_scaling"].pop("rope_theta")
    text["eos_token_id"] = TOKEN_IDS["<|im_end|>"]
    text["tie_word_embeddings"] = config["tie_word_embeddings"]
    vision["model_type"] = "qwen3_vl"
    del vision["rope_parameters"]
