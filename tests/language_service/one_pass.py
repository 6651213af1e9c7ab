"""Compute a whole sequence at once, as a reference.

The plain decoder without a cache, which `test_qwen3_vl.py` compares with transformers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from language_service.engine.runner import PlacedImage
from language_service.model import Decoder, ImageRows, shift_after, token_positions
from language_service.model.attention import causal_attend
from tests.language_service.asking import Part


def place(parts: Sequence[Part]) -> list[PlacedImage]:
    """Return the images of a prompt at their places."""
    images: list[PlacedImage] = []
    start = 0
    for part in parts:
        if not isinstance(part, list):
            tokens_NX, grid = (part, None) if isinstance(part, Tensor) else (part.tokens_NX, part.grid)
            shift = shift_after(images[-1]) if images else 0
            images.append(PlacedImage(start, tokens_NX, grid, shift))
        start += len(part)
    return images


def token_ids(parts: Sequence[Part]) -> list[int]:
    """Return token ids of a prompt, 0 for visual tokens."""
    return [token for part in parts for token in (part if isinstance(part, list) else [0] * len(part))]


def inputs(decoder: Decoder, parts: Sequence[Part]) -> tuple[Tensor, Tensor, list[ImageRows]]:
    """Return embeddings [T, D], positions [3, T] and image rows of a prompt."""
    ids, images = token_ids(parts), place(parts)
    embeddings_TD = decoder.embed(torch.tensor(ids))
    num_levels = 1 + decoder.config.num_deepstack_levels
    rows = []
    for image in images:
        tokens_NLD = image.embeddings_NX.to(embeddings_TD.dtype).reshape(-1, num_levels, decoder.config.width)
        embeddings_TD[image.start : image.end] = decoder.embed_visual(tokens_NLD[:, 0])
        rows.append(ImageRows(image.start, tokens_NLD))
    return embeddings_TD, torch.tensor(token_positions(0, len(ids), images)), rows


@torch.inference_mode()
def logits(decoder: Decoder, parts: Sequence[Part]) -> Tensor:
    """Return logits [T, V] of a prompt."""
    embeddings_TD, positions_3T, rows = inputs(decoder, parts)
    hidden_TD = decoder(embeddings_TD, positions_3T, causal_attend(1, len(embeddings_TD)), rows)
    return decoder.logits(hidden_TD)
