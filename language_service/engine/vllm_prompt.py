"""Collect a prompt as vLLM takes it.

Models without grids get the embeddings of images between token ids, which vLLM embeds itself. Qwen3-VL gets one
placeholder token for each image, which vLLM expands by the image's grid.

The prefix cache of vLLM hashes embeddings by content and images by id. The id covers salt, visual key and grid, so
nobody meets the images of another tenant, and an equal key never brings another number of tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chassis.errors import InvalidArgument
from language_service.model import Grid

# N visual tokens, X elements of each, all levels together, D model dim, T tokens of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """How the prompts of one model look."""

    width: int  # D
    dtype: torch.dtype
    modality_D: Tensor | None  # added to the embeddings of images
    image_token_id: int | None  # the placeholder of an image with a grid. None: images are embeddings
    reserved: frozenset[int] = frozenset()  # token ids that only placeholders may have
    merge_size: int = 1  # patches along a side of a visual token


class VllmPrompt:
    """One prompt, part by part."""

    def __init__(self, form: PromptForm, *, salt: bytes) -> None:
        self._form = form
        self._salt = salt
        self._token_ids: list[int] = []
        self._images: list[tuple[int, Tensor, Grid | None]] = []  # place of the first token, embeddings, grid
        self._ids: list[str] = []  # of the images
        self.num_visual = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, visual ones included."""
        placeholders = len(self._images) if self._form.image_token_id is not None else self.num_visual
        return len(self._token_ids) - placeholders + self.num_visual

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add text.

        Raises:
            InvalidArgument: reason 'RESERVED_TOKEN', it has the placeholder of an image.
        """
        if not self._form.reserved.isdisjoint(token_ids):
            raise InvalidArgument(
                "text.token_ids has the placeholder of an image or a video, which this model's engine keeps for "
                "itself, so leave it out.",
                reason="RESERVED_TOKEN",
                field="text.token_ids",
            )
        self._token_ids += token_ids

    def add_image(self, embeddings_NX: Tensor, visual_key: bytes, grid: Grid | None) -> None:
        """Add an image in bfloat16."""
        self._images.append((len(self._token_ids), embeddings_NX, grid))
        self._ids.append(hashlib.sha256(repr((self._salt, visual_key, grid)).encode()).hexdigest())
        self.num_visual += len(embeddings_NX)
        placeholder = self._form.image_token_id
        self._token_ids += [0] * len(embeddings_NX) if placeholder is None else [placeholder]

    def build(self) -> dict[str, Any]:
        """Return the whole prompt for vLLM."""
        prompt: dict[str, Any] = {"prompt_token_ids": self._token_ids}
        if self._salt:
            prompt["cache_salt"] = self._salt.hex()
        if not self._images:
            return prompt
        return prompt | (self._with_embeddings() if self._form.image_token_id is None else self._with_grids())

    def _with_embeddings(self) -> dict[str, Any]:
        form = self._form
        embeddings_TD = torch.zeros(len(self._token_ids), form.width, dtype=form.dtype)
        is_text = [True] * len(self._token_ids)
        for start, embeddings_ND, _ in self._images:
            end = start + len(embeddings_ND)
            visual_ND = embeddings_ND.to(form.dtype)
            embeddings_TD[start:end] = visual_ND if form.modality_D is None else visual_ND + form.modality_D
            is_text[start:end] = [False] * len(embeddings_ND)
        # The repetition penalty counts the ids at images, too. One of the text is counted anyway.
        stand_in = next((token for token, text in zip(self._token_ids, is_text, strict=True) if text), 0)
        token_ids = [token if text else stand_in for token, text in zip(self._token_ids, is_text, strict=True)]
        return {"prompt_token_ids": token_ids, "prompt_embeds": embeddings_TD, "prompt_is_token_ids": is_text}

    def _with_grids(self) -> dict[str, Any]:
        merge = self._form.merge_size
        grids = [[1, merge * grid.rows, merge * grid.columns] for _, _, grid in self._images if grid is not None]
        embeddings_NX = torch.cat([embeddings for _, embeddings, _ in self._images]).to(self._form.dtype)
        images = {"image_embeds": embeddings_NX, "image_grid_thw": torch.tensor(grids)}
        return {"multi_modal_data": {"image": images}, "multi_modal_uuids": {"image": self._ids}}
