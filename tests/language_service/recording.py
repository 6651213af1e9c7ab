"""Record the logits that an engine computes."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from language_service.engine.kv_cache import PagedCache
from language_service.engine.runner import Images, Runner
from language_service.model.decoder import Decoder
from language_service.scheduling.sequence import Chunk
from language_service.scheduling.sequence import Sequence as ScheduledSequence


@dataclass(frozen=True, slots=True)
class Row:
    """The logits after one token."""

    sequence: ScheduledSequence
    index: int  # of the token
    drafts: list[int]  # before this row, perhaps wrong
    logits_V: Tensor


class RecordingRunner(Runner):
    """Records the logits of every row that chose a token."""

    def __init__(self, decoder: Decoder, cache: PagedCache) -> None:
        super().__init__(decoder, cache)
        self.rows: list[Row] = []

    def forward(
        self, chunks: Sequence[Chunk], fresh_blocks: Sequence[int], images: Sequence[Images] | None = None
    ) -> Tensor:
        logits_BV = super().forward(chunks, fresh_blocks, images)
        computed = iter(logits_BV.clone())
        for chunk in chunks:
            for num_drafts in range(chunk.num_drafts + 1) if chunk.samples else ():
                index = chunk.end - 1 - chunk.num_drafts + num_drafts
                self.rows.append(Row(chunk.sequence, index, chunk.drafts[:num_drafts], next(computed)))
        return logits_BV
