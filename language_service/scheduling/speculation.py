"""Add drafts to the chunks of a step."""

from collections.abc import Sequence as AbstractSequence

from language_service.scheduling.block_manager import BlockManager
from language_service.scheduling.sequence import Chunk

_MAX_NGRAM_STEP = 8  # tokens of a step with n-gram drafts. Such a step takes the time of reading the weights.


def add_drafts(chunks: AbstractSequence[Chunk], budget: int, blocks: BlockManager, *, jump_ahead: bool) -> list[Chunk]:
    """Return the chunks with drafts where a token is chosen.

    Args:
        chunks: of one step.
        budget: most drafts of all of them.
        blocks: gives the drafts their blocks, as far as some are available.
        jump_ahead: whether tokens that a constraint forces are drafts.
    """
    num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
    drafted = []
    for chunk in chunks:
        drafts: AbstractSequence[int] = ()
        if chunk.samples:
            sequence = chunk.sequence
            count = max(0, min(budget, sequence.max_length - len(sequence.token_ids) - 1))
            if sequence.forced:
                drafts = sequence.forced[:count] if jump_ahead else ()
            elif sequence.drafter is not None:
                drafts = sequence.drafter.draft(sequence.token_ids, max(0, min(count, _MAX_NGRAM_STEP - num_tokens)))
            if drafts:
                drafts = drafts[: blocks.reserve_some(sequence, len(drafts))]
        budget -= len(drafts)
        num_tokens += len(drafts)
        drafted.append(chunk.with_drafts(drafts) if drafts else chunk)
    return drafted
