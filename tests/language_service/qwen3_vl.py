"""Small Qwen3-VL models with equal weights, by transformers and ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from checkpoint.families import LanguageConfig
from language_service.model.decoder import Decoder
from language_service.model.positions import Grid
from tests.language_service.asking import Part
from tests.language_service.small import GridImage

NUM_TOKENS = 64  # of an answer
_PATCH = 2 * 3 * 16 * 16  # elements of a patch, with both frames
_MERGE = 2
IMAGE_TOKEN = 263  # never in an answer, because transformers expects an image there
_SECTION = (3, 3, 2)

OURS = LanguageConfig(
    width=48,
    num_layers=5,
    num_heads=6,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=80,
    vocab_size=264,
    context_length=512,
    qk_norm=True,
    rope_theta=10_000.0,
    mrope_section=_SECTION,
    num_deepstack_levels=3,
    eos_token_ids=(2,),
)
_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage(GridImage):
    """An image as transformers takes it, with its visual tokens."""

    patches: Tensor


@dataclass(frozen=True)
class Reference:
    """A question with the answer of transformers."""

    parts: list[Part]
    answer: list[int]
    logits_TV: Tensor  # over prompt and answer

    @cached_property
    def num_prompt(self) -> int:
        return sum(map(len, self.parts))


class Pair:
    """One model twice: by transformers, and ours."""

    def __init__(self, *, tied: bool) -> None:
        torch.manual_seed(0)
        self.theirs = _make_theirs(tied=tied)
        self.config = OURS.model_copy(update={"tied_embeddings": tied})
        self.ours = Decoder(self.config).requires_grad_(False).eval()
        self.ours.load_state_dict(_translate(self.theirs.state_dict(), tied=tied))

    @torch.no_grad()
    def image(self, seed: int, rows: int, columns: int) -> EncodedImage:
        """Encode random pixels with the vision tower of transformers."""
        patches = torch.randn(_MERGE**2 * rows * columns, _PATCH, generator=torch.Generator().manual_seed(seed))
        features = self.theirs.model.get_image_features(patches, torch.tensor([[1, _MERGE * rows, _MERGE * columns]]))
        levels = [torch.cat(list(level)) for level in (features.pooler_output, *features.deepstack_features)]
        return EncodedImage(torch.cat(levels, dim=1), Grid(rows, columns), patches)

    @torch.no_grad()
    def ask(self, parts: Sequence[Part]) -> Reference:
        """Return the greedy answer of transformers, and all logits."""
        inputs = _inputs(parts)
        length = inputs["input_ids"].shape[1]
        options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
        answer = self.theirs.generate(**inputs, **options)[0, length:].tolist()
        return Reference(list(parts), answer, self.theirs(**_inputs([*parts, answer])).logits[0])


def _make_theirs(*, tied: bool) -> Any:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": list(_SECTION), "mrope_interleaved": True}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 48,
        "deepstack_visual_indexes": [0, 1, 2],
        "num_position_embeddings": 64,
    }
    text = {
        "vocab_size": 264,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_parameters": rope,
    }
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        tie_word_embeddings=tied,
        image_token_id=IMAGE_TOKEN,
        video_token_id=IMAGE_TOKEN - 1,
    )
    model: Any = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2)  # far from uniform, so that answers depend on the prompt
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)  # all ones would hide a missing norm
    model.generation_config.eos_token_id = None
    model.eval()
    return model


def _translate(tensors: dict[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Return the decoder's tensors under our names."""
    ours = {}
    for name, tensor in tensors.items():
        if name.startswith("model.language_model."):
            parts = [_NAMES.get(part, part) for part in name.removeprefix("model.").split(".")]
            ours[".".join(parts)] = tensor
    return ours if tied else {**ours, "lm_head.weight": tensors["lm_head.weight"]}


def _inputs(parts: Sequence[Part]) -> dict[str, Tensor]:
    images = [part for part in parts if isinstance(part, EncodedImage)]
    ids = [token for part in parts for token in (part if isinstance(part, list) else [IMAGE_TOKEN] * len(part))]
    kinds = [kind for part in parts for kind in [int(isinstance(part, EncodedImage))] * len(part)]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "mm_token_type_ids": torch.tensor([kinds]),
        "attention_mask": torch.ones(1, len(ids)),
    }
    if images:
        grids = [[1, _MERGE * image.grid.rows, _MERGE * image.grid.columns] for image in images]
        inputs |= {
            "pixel_values": torch.cat([image.patches for image in images]),
            "image_grid_thw": torch.tensor(grids),
        }
    return inputs
