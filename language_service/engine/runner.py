"""One forward pass: chunks of many sequences through the decoder and its cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from language_service.engine.cuda_graphs import CudaRecorder, RecordedSteps
from language_service.engine.kv_cache import PagedCache, Span
from language_service.engine.serving import ServingDecoder
from language_service.model import Decoder

# T tokens of the batch, N visual tokens of an image, D model dim, B rows that choose a token, V vocabulary


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """Visual tokens at their place in a prompt."""

    start: int  # position of the first
    embeddings_ND: Tensor
    visual_key: bytes  # names their content, 32 bytes

    @property
    def end(self) -> int:
        """Position after the last."""
        return self.start + len(self.embeddings_ND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive tokens of one sequence to compute."""

    start: int  # position of the first token
    token_ids: Sequence[int]  # anything where an image lies
    blocks: Sequence[int]  # cache blocks of the sequence in order
    samples: bool  # whether the logits after the last token are wanted
    num_drafts: int = 0  # last tokens that are guesses: the logits before each of them are wanted, too
    images: Sequence[PlacedImage] = field(default=())  # all of the sequence

    @property
    def decodes(self) -> bool:
        """Whether this is a single token of text that chooses the next."""
        return self.samples and len(self.token_ids) == 1 and all(each.end <= self.start for each in self.images)


class Runner:
    """A decoder with its cache on one device."""

    def __init__(self, decoder: Decoder | ServingDecoder, cache: PagedCache) -> None:
        """Join decoder and cache; a `Decoder` keeps its weights, and what is made of them takes memory of its own."""
        self.decoder = (
            decoder
            if isinstance(decoder, ServingDecoder)
            else ServingDecoder(decoder.config, dict(decoder.state_dict()))
        )
        self.cache = cache
        self.device = cache.device
        on_gpu = self.device.type == "cuda"
        self._recorded = RecordedSteps(self.decoder, cache, CudaRecorder(self.device)) if on_gpu else None

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece], fresh_blocks: Sequence[int]) -> Tensor:
        """Compute `pieces`, store their keys and values, return logits of those that sample, in order.

        That is one row [V] after the last token of each, preceded by one row before each of its guesses. The next call
        may overwrite them.

        `fresh_blocks` are those that changed owner since the last call.
        """
        self.cache.clear(fresh_blocks)
        spans = [Span(piece.start, len(piece.token_ids), piece.blocks) for piece in pieces]
        if self._recorded is not None and all(piece.decodes for piece in pieces):
            logits_BV = self._recorded.forward([piece.token_ids[0] for piece in pieces], spans)
            if logits_BV is not None:
                return logits_BV
        attend = self.cache.attend(spans)
        ends: list[int] = []
        end = 0
        for piece in pieces:
            end += len(piece.token_ids)
            if piece.samples:
                ends += range(end - 1 - piece.num_drafts, end)
        rows_R = torch.tensor(ends, dtype=torch.long, device=self.device)
        return self.decoder.forward(self._embed(pieces), self._positions(pieces), attend, rows_R)

    def _embed(self, pieces: Sequence[Piece]) -> Tensor:
        token_ids = [token for piece in pieces for token in piece.token_ids]
        embeddings_TD = self.decoder.embed(torch.tensor(token_ids, device=self.device))
        row = 0
        for piece in pieces:
            end = piece.start + len(piece.token_ids)
            for image in piece.images:
                first, last = max(piece.start, image.start), min(end, image.end)
                if first < last:
                    visual_ND = image.embeddings_ND[first - image.start : last - image.start].to(self.device)
                    at = row + first - piece.start
                    embeddings_TD[at : at + last - first] = self.decoder.embed_visual(visual_ND)
            row += len(piece.token_ids)
        return embeddings_TD

    def _positions(self, pieces: Sequence[Piece]) -> Tensor:
        positions = [piece.start + index for piece in pieces for index in range(len(piece.token_ids))]
        return torch.tensor(positions, device=self.device)
