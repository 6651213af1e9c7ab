"""How well a decoder expects the demo's right answers.

The text is that of `demo.evaluate`: conversations about drawn images from seeds that training never used. The decoder
reads the image's visual tokens, the questions and the right answers. Its perplexity is over the tokens of the answers.

T tokens of a conversation with its image, L tokens after the image, D decoder width, V vocabulary
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.checkpoints import huggingface_config, huggingface_name
from checkpoint.config import read_config
from checkpoint.families import ResamplerModelConfig, Scheme
from checkpoint.manifest import TOKENIZER_FILE, read_manifest, read_verified_config
from checkpoint.quantizing import NearestRounder, Rounder, plan, quantize
from checkpoint.rounding import Grid
from checkpoint.store import ModelStore
from checkpoint.weight_files import open_folder
from checkpoint.weights import load_half
from demo.batches import IGNORED, ConversationEncoder
from demo.evaluate import Case, make_cases
from language_service.calibration import CalibratedRounder, CalibrationImage, Prompt
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache
from language_service.engine.serving import ServingDecoder
from processing import load_upright, open_image_file, open_image_processor
from vision_service.backends import BackendOptions, open_backend

_CPU = torch.device("cpu")
_BLOCK_SIZE = 16
GROUP = 32  # divides the width of the demo model, 192


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """A conversation about an image, as the decoder reads it."""

    before: list[int]  # token ids up to the image
    image_ND: Tensor  # visual tokens, empty without an image
    after: list[int]
    targets_L: Tensor  # of each token after the image the next one, where that is of an answer, else IGNORED

    def without_image(self) -> "Passage":
        """Return the same text without the image."""
        return Passage(self.before, self.image_ND[:0], self.after, self.targets_L)

    def prompt(self) -> Prompt:
        """Return the conversation for calibration."""
        return [self.before, CalibrationImage(self.image_ND, None), self.after]


@dataclass(frozen=True, slots=True)
class Form:
    """A checkpoint with fewer bits."""

    scheme: Scheme
    calibrated: bool = False

    def __str__(self) -> str:
        """Return the form for people."""
        group = "" if self.scheme == "w8a8" else f" g{GROUP}"
        return f"{self.scheme}{group}{', calibrated' if self.calibrated else ''}"


# Returns the logits [L, V] after each token behind the image.
Reader = Callable[[Passage], Tensor]


@dataclass(frozen=True, slots=True)
class Score:
    """How well a decoder expects the answers."""

    perplexity: float
    right: float  # share of conversations in which every token of the answers is the most likely one


def read_passages(folder: Path, num_conversations: int, *, seed: int = 0) -> list[Passage]:
    """Return conversations as a release's decoder reads them.

    Args:
        folder: of a release of the demo model.
        num_conversations: as in `demo.evaluate`, which asks the same.
        seed: selects the images. Those of different seeds have none in common.
    """
    config = read_config(folder)
    assert isinstance(config, ResamplerModelConfig)
    encoder = ConversationEncoder(config, Tokenizer.from_file(str(folder / TOKENIZER_FILE)))
    cases = make_cases(num_conversations, seed)
    images = _encode(folder, cases)
    passages = []
    for case in cases:
        token_ids, targets = encoder.encode(case.conversation)
        passages.append(Passage(list(encoder.before_image), images[case.scene_seed], token_ids, torch.tensor(targets)))
    return passages


def _encode(folder: Path, cases: Sequence[Case]) -> dict[int, Tensor]:
    """Return the visual tokens of the images, by scene seed."""
    half = open_backend("torch", folder, BackendOptions())
    processor = open_image_processor(half.config)
    images = {}
    for scene_seed, data in {case.scene_seed: case.image for case in cases}.items():
        (bits_ND,) = half.backend.encode([processor.to_pixels(load_upright(open_image_file(data)))])
        images[scene_seed] = torch.from_numpy(bits_ND.view(np.int16)).view(torch.bfloat16)
    return images


def our_reader(folder: Path) -> Reader:
    """Return our decoder as it serves, in any scheme."""
    half = load_half(folder, "language", dtype=torch.bfloat16)
    language = half.config.language
    decoder = ServingDecoder(language, half.tensors)
    shape = CacheConfig(num_blocks=-(-language.context_length // _BLOCK_SIZE), block_size=_BLOCK_SIZE)
    cache = PagedCache(language, shape, dtype=torch.bfloat16, device=_CPU)

    @torch.inference_mode()
    def read(passage: Passage) -> Tensor:
        embeddings_TD = torch.cat(
            [
                decoder.embed(torch.tensor(passage.before)),
                decoder.embed_visual(passage.image_ND),
                decoder.embed(torch.tensor(passage.after)),
            ]
        )
        positions_T = torch.arange(len(embeddings_TD))
        attend = cache.attend([CacheSpan(0, len(embeddings_TD), range(shape.num_blocks))])
        return decoder.forward(embeddings_TD, positions_T, attend, positions_T[-len(passage.after) :])

    return read


def transformers_reader(folder: Path, dtype: torch.dtype) -> Reader:
    """Return the decoder of transformers with the same weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    half = load_half(folder, "language", dtype=dtype)
    made: Any = Qwen3ForCausalLM(Qwen3Config(**huggingface_config(half.config.language)))  # its methods have no types
    model = made.to(dtype).eval()
    tensors = {huggingface_name(name): tensor for name, tensor in half.tensors.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:  # the head is the embedding
        raise ValueError(f"transformers has another decoder: {missing} missing, {unexpected} unexpected")

    @torch.inference_mode()
    def read(passage: Passage) -> Tensor:
        embed = model.get_input_embeddings()
        before, after = (embed(torch.tensor(ids)) for ids in (passage.before, passage.after))
        embeddings_TD = torch.cat([before, passage.image_ND.to(dtype), after])
        logits_LV: Tensor = model(inputs_embeds=embeddings_TD[None]).logits[0, -len(passage.after) :]
        return logits_LV

    return read


def make_checkpoint(source: Path, root: Path, form: Form, calibration: Sequence[Passage]) -> Path:
    """Make a checkpoint with fewer bits, and return its folder."""
    before = read_verified_config(source, read_manifest(source))
    config = plan(before, form.scheme, GROUP)
    quantization = config.language.quantization
    assert quantization is not None
    grid = Grid(form.scheme, quantization.group or 0)
    rounder: Rounder = NearestRounder(grid)
    if form.calibrated:
        prompts = [passage.prompt() for passage in calibration]
        rounder = CalibratedRounder(before.language, open_folder(source), grid, prompts)
    tag = f"{form.scheme}-{'calibrated' if form.calibrated else 'nearest'}-v1.0.0"
    quantize(source, root, tag, config, rounder)
    return ModelStore(root).folder(tag)


def score(reader: Reader, passages: Iterable[Passage]) -> Score:
    """Read all conversations."""
    nll, num_tokens, right = 0.0, 0, []
    for passage in passages:
        is_answer_L = passage.targets_L != IGNORED
        logits, targets = reader(passage)[is_answer_L].float(), passage.targets_L[is_answer_L]
        nll += float(functional.cross_entropy(logits, targets, reduction="sum"))
        num_tokens += len(targets)
        right.append(bool((logits.argmax(dim=-1) == targets).all()))
    return Score(math.exp(nll / num_tokens), sum(right) / len(right))
