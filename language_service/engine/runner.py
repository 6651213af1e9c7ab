"""Run one forward pass over chunks of many sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from language_service.engine.cuda_graphs import CudaRecorder, RecordedSteps
from language_service.engine.interface import EngineDescription
from language_service.engine.kv_cache import CacheSpan, PagedCache
from language_service.engine.serving import ServingDecoder
from language_service.model import Decoder
from language_service.scheduling import Chunk

# T tokens of the batch, N visual tokens of an image, D model dim, B rows that choose a token, V vocabulary


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """Visual tokens at their place in a prompt."""

    start: int  # position of the first
    embeddings_ND: Tensor
    visual_key: bytes  # identifies their content, 32 bytes

    @property
    def end(self) -> int:
        """Position after the last."""
        return self.start + len(self.embeddings_ND)


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
        on_gpu = self.device.type == "cuda"
        self._recorded = RecordedSteps(self.decoder, cache, CudaRecorder(self.device)) if on_gpu else None

    @property
    def description(self) -> EngineDescription:
        """Fixed facts about decoder and cache."""
        return EngineDescription(
            backend="torch",
            kernels=type(self.decoder.kernels).__name__,
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
            logits_BV = self._recorded.forward([chunk.token_ids[0] for chunk in chunks], spans)
            if logits_BV is not None:
                return logits_BV
        attend = self.cache.attend(spans)
        sampled_rows: list[int] = []
        end = 0
        for chunk in chunks:
            end += len(chunk.token_ids)
            if chunk.samples:
                sampled_rows += range(end - 1 - chunk.num_drafts, end)
        rows_B = torch.tensor(sampled_rows, dtype=torch.long, device=self.device)
        return self.decoder.forward(self._embed(chunks, images), self._positions(chunks), attend, rows_B)

    def _embed(self, chunks: Sequence[Chunk], images: Sequence[Images]) -> Tensor:
        token_ids = [token for chunk in chunks for token in chunk.token_ids]
        embeddings_TD = self.decoder.embed(torch.tensor(token_ids, device=self.device))
        row = 0
        for chunk, images_of_chunk in zip(chunks, images, strict=True):
            for image in images_of_chunk:
                first, last = max(chunk.start, image.start), min(chunk.end, image.end)
                if first < last:
                    visual_ND = image.embeddings_ND[first - image.start : last - image.start].to(self.device)
                    image_row = row + first - chunk.start
                    embeddings_TD[image_row : image_row + last - first] = self.decoder.embed_visual(visual_ND)
            row += len(chunk.token_ids)
        return embeddings_TD

    def _positions(self, chunks: Sequence[Chunk]) -> Tensor:
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        return torch.tensor(positions, device=self.device)


def _only_decodes(chunk: Chunk, images: Images) -> bool:
    """Return whether a chunk is a decoding token of text."""
    return chunk.samples and len(chunk.token_ids) == 1 and all(image.end <= chunk.start for image in images)
