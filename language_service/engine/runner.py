"""Run one forward pass over chunks of many sequences."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chassis.cuda_recorder import CudaRecorder
from language_service.engine.cuda_graphs import RecordedSteps
from language_service.engine.interface import EngineDescription
from language_service.engine.kv_cache import CacheSpan, PagedCache
from language_service.engine.recorded_chunks import ChunkBatch, RecordedChunks
from language_service.engine.serving import ServingDecoder
from language_service.model import Decoder, Grid, ImageRows, shift_at, token_positions
from language_service.scheduling import Chunk

# T tokens of the batch, N visual tokens of an image, L vectors of each (embedding and DeepStack levels), D model dim,
# X = L D, B rows that choose a token, V vocabulary


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """Visual tokens at their place in a prompt."""

    start: int  # index of the first in its sequence
    embeddings_NX: Tensor
    grid: Grid | None = None  # None gives them positions as in text
    shift: int = 0  # position minus index, in the text before the image

    @property
    def end(self) -> int:
        """Index after the last."""
        return self.start + len(self.embeddings_NX)


Images = Sequence[PlacedImage]  # all images of one sequence


class Runner:
    """A decoder and its cache on one device."""

    def __init__(self, decoder: Decoder | ServingDecoder, cache: PagedCache) -> None:
        """Join decoder and cache.

        A `Decoder` keeps its weights, so its serving form takes memory of its own.
        """
        self.decoder = (
            decoder
            if isinstance(decoder, ServingDecoder)
            else ServingDecoder(decoder.config, dict(decoder.state_dict()))
        )
        self.cache = cache
        self.device = cache.device
        self._has_grids = self.decoder.config.mrope_section is not None
        on_gpu = self.device.type == "cuda"
        recorder = CudaRecorder(self.device) if on_gpu else None
        self._recorded = None if recorder is None else RecordedSteps(self.decoder, cache, recorder)
        self._recorded_chunks = None if recorder is None else RecordedChunks(self.decoder, cache, recorder)

    @property
    def description(self) -> EngineDescription:
        """Fixed facts about decoder and cache."""
        return EngineDescription(
            backend=self.decoder.kernels.name,
            kernels=self.decoder.kernels.name,
            num_parameters=self.decoder.num_parameters,
            num_weight_bytes=self.decoder.num_weight_bytes,
            block_size=self.cache.config.block_size,
            num_blocks=self.cache.config.num_blocks,
            num_cache_bytes=self.cache.kv.nbytes,
        )

    @torch.inference_mode()
    def forward(
        self, chunks: Sequence[Chunk], fresh_blocks: Sequence[int], images: Sequence[Images] | None = None
    ) -> Tensor:
        """Compute `chunks` and store their keys and values.

        Args:
            chunks: at most one per sequence.
            fresh_blocks: blocks that changed owner since the last call.
            images: of the sequence of each chunk. None means no images at all.

        Returns:
            Logits [B, V]. Each chunk that samples has one row for its last token, after one row for the token before
            each of its drafts. The next call may overwrite them.
        """
        images = [()] * len(chunks) if images is None else images
        self.cache.clear(fresh_blocks)
        spans = [CacheSpan(chunk.start, len(chunk.token_ids), chunk.blocks) for chunk in chunks]
        if self._recorded is not None and all(map(_only_decodes, chunks, images)):
            token_ids = [chunk.token_ids[0] for chunk in chunks]
            logits_BV = self._recorded.forward(token_ids, spans, self._text_positions(chunks, images))
            if logits_BV is not None:
                return logits_BV
        sampled_rows: list[int] = []
        end = 0
        for chunk in chunks:
            end += len(chunk.token_ids)
            if chunk.samples:
                sampled_rows += range(end - 1 - chunk.num_drafts, end)
        image_rows = self._image_rows(chunks, images)
        embeddings_TD = self._embed(chunks, image_rows)
        positions = self._positions(chunks, images, with_images=bool(image_rows))
        batch = ChunkBatch(embeddings_TD, positions, spans, sampled_rows)
        has_levels = bool(image_rows) and self.decoder.config.num_deepstack_levels > 0
        ordinary = partial(self._compute, batch, image_rows)
        if self._recorded_chunks is None or has_levels or not self._recorded_chunks.takes(batch):
            return ordinary()
        return self._recorded_chunks.forward(batch, ordinary)

    def _compute(self, batch: ChunkBatch, image_rows: Sequence[ImageRows]) -> Tensor:
        """Compute a batch without a recording."""
        rows_B = torch.tensor(batch.sampled_rows, dtype=torch.long, device=self.device)
        positions = batch.positions[0] if len(batch.positions) == 1 else batch.positions
        positions_T = torch.tensor(positions, device=self.device)
        attend = self.cache.attend(batch.spans)
        return self.decoder.forward(batch.embeddings_TD, positions_T, attend, rows_B, image_rows)

    def _image_rows(self, chunks: Sequence[Chunk], images: Sequence[Images]) -> list[ImageRows]:
        """Return the visual tokens of the batch.

        On the CPU they are views if their type is the decoder's. Other visual tokens are not touched.
        """
        found = []
        levels, row = 1 + self.decoder.config.num_deepstack_levels, 0
        for chunk, images_of_chunk in zip(chunks, images, strict=True):
            for image in images_of_chunk:
                first, last = max(chunk.start, image.start), min(chunk.end, image.end)
                if first < last:
                    visual_NX = image.embeddings_NX[first - image.start : last - image.start]
                    visual_NLD = visual_NX.to(self.device, self.decoder.dtype).reshape(last - first, levels, -1)
                    found.append(ImageRows(row + first - chunk.start, visual_NLD))
            row += len(chunk.token_ids)
        return found

    def _embed(self, chunks: Sequence[Chunk], images: Sequence[ImageRows]) -> Tensor:
        token_ids = [token for chunk in chunks for token in chunk.token_ids]
        embeddings_TD = self.decoder.embed(torch.tensor(token_ids, device=self.device))
        for image in images:
            embeddings_TD[image.first : image.end] = self.decoder.embed_visual(image.tokens_NLD[:, 0])
        return embeddings_TD

    def _positions(
        self, chunks: Sequence[Chunk], images: Sequence[Images], *, with_images: bool
    ) -> Sequence[Sequence[int]]:
        """Return rotary positions, in one part or in three."""
        if not (self._has_grids and with_images):
            return [self._text_positions(chunks, images)]
        parts: list[list[int]] = [[], [], []]
        for chunk, images_of_chunk in zip(chunks, images, strict=True):
            for part, positions in zip(parts, token_positions(chunk.start, chunk.end, images_of_chunk), strict=True):
                part += positions
        return parts

    def _text_positions(self, chunks: Sequence[Chunk], images: Sequence[Images]) -> list[int]:
        """Return rotary positions of chunks without visual tokens.

        Their three parts are equal.
        """
        if not self._has_grids:
            return [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        starts = [chunk.start + shift_at(chunk.start, placed) for chunk, placed in zip(chunks, images, strict=True)]
        return [
            start + step for start, chunk in zip(starts, chunks, strict=True) for step in range(len(chunk.token_ids))
        ]


def _only_decodes(chunk: Chunk, images: Images) -> bool:
    """Return whether a chunk is a decoding token of text."""
    return chunk.samples and len(chunk.token_ids) == 1 and all(image.end <= chunk.start for image in images)
