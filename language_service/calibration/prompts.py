"""Turn prompts into inputs of the first layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoint.families import EMBEDDING, LanguageConfig
from checkpoint.stored_tensor import StoredTensor
from checkpoint.torch_tensors import as_torch
from language_service.model import Grid, ImageRows, Rotary, shift_after, token_positions

# T tokens, N visual tokens, L vectors of each, D model dim, X = L D

_MODALITY = "language_model.modality_embedding.weight"


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationImage:
    """Visual tokens of one image."""

    tokens_NX: Tensor  # of each token the embedding, then its levels
    grid: Grid | None  # None: positions as in text

    def __len__(self) -> int:
        return len(self.tokens_NX)


Prompt = Sequence[Sequence[int] | CalibrationImage]  # token ids and images, in order


@dataclass(slots=True)
class State:
    """A prompt on its way through the layers."""

    hidden_TD: Tensor  # float32
    angles: tuple[Tensor, Tensor]
    images: list[ImageRows]


@dataclass(frozen=True, slots=True)
class _Span:
    """The place of an image in a prompt."""

    start: int
    end: int
    grid: Grid | None
    shift: int


def embed(config: LanguageConfig, tensors: Mapping[str, StoredTensor], prompts: Sequence[Prompt]) -> Iterator[State]:
    """Yield the prompts as inputs of the first layer.

    Args:
        config: of the decoder.
        tensors: of the checkpoint. Only the rows of the prompts' tokens are read.
        prompts: token ids below the vocabulary's size, and images of the model's width.
    """
    rotary = Rotary(config)
    table_VD = as_torch(tensors[EMBEDDING])
    modality_2D = as_torch(tensors[_MODALITY]).float() if config.modality_embedding else torch.zeros(2, config.width)
    for prompt in prompts:
        spans = _spans(prompt)
        rows = [_rows(part, table_VD, modality_2D, config) for part in prompt]
        hidden_TD = torch.cat([rows_NLD[:, 0] for rows_NLD in rows])
        positions_3T = torch.tensor(token_positions(0, len(hidden_TD), spans))
        images = [rows_NLD for part, rows_NLD in zip(prompt, rows, strict=True) if isinstance(part, CalibrationImage)]
        yield State(
            hidden_TD,
            rotary.angles(positions_3T if config.mrope_section else positions_3T[0], torch.float32),
            [ImageRows(span.start, rows_NLD) for span, rows_NLD in zip(spans, images, strict=True)],
        )


def _rows(
    part: Sequence[int] | CalibrationImage, table_VD: Tensor, modality_2D: Tensor, config: LanguageConfig
) -> Tensor:
    """Return a part's vectors [N, L, D]. Text has no levels."""
    if not isinstance(part, CalibrationImage):
        return (table_VD[torch.tensor(part)].float() + modality_2D[0])[:, None]
    rows_NLD = part.tokens_NX.float().reshape(len(part), -1, config.width)
    return torch.cat([rows_NLD[:, :1] + modality_2D[1], rows_NLD[:, 1:]], dim=1)


def _spans(prompt: Prompt) -> list[_Span]:
    spans: list[_Span] = []
    start = 0
    for part in prompt:
        if isinstance(part, CalibrationImage):
            shift = shift_after(spans[-1]) if spans else 0
            spans.append(_Span(start, start + len(part), part.grid, shift))
        start += len(part)
    return spans
