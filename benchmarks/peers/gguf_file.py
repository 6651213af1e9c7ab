"""Convert the Hugging Face checkpoint to GGUF, in llama.cpp's environment."""

import json
from collections.abc import Iterator
from pathlib import Path

import gguf  # type: ignore[import-not-found]
import numpy as np

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(source: Path, target: Path) -> None:
    """Convert a Hugging Face folder to a GGUF file.

    Matrices stay bfloat16 and are mapped from disk, without a copy in memory.
    """
    config = json.loads((source / "config.json").read_text())
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    _describe(writer, config)
    for name, values in _bfloat16_tensors(source / "model.safetensors"):
        if values.ndim == 1:  # GGUF stores norms as float32
            writer.add_tensor(_their_name(name), (values.astype(np.uint32) << 16).view(np.float32))
        else:
            raw = values.view(np.uint8)
            writer.add_tensor(_their_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _describe(writer: gguf.GGUFWriter, config: dict[str, int]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")  # the benchmark uses token ids
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _bfloat16_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and values of a safetensors file's tensors.

    The values are mapped from the file. They contain the bits of bfloat16 as uint16.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start = 8 + length + entry["data_offsets"][0]
        yield name, np.memmap(path, dtype="<u2", mode="r", offset=start, shape=tuple(entry["shape"]))


def _their_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[part]}.weight"
    return f"{_NAMES[stem]}.weight"
