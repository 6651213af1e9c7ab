"""Share the prefill budget of a step between sequences."""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

from language_service.scheduling.sequence import Chunk, Sequence

NextHash = Callable[[Sequence], bytes | None]  # of the block that a sequence computes next, None without one


def share_prefill(
    ready: AbstractSequence[Sequence], budget: int, next_hash: NextHash, *, block_size: int, is_shared: bool
) -> list[Chunk]:
    """Return the prompts' chunks of one step.

    Args:
        ready: sequences that prefill, in order.
        budget: tokens that the step may prefill.
        next_hash: finds sequences that wait for a block of others.
        block_size: tokens.
        is_shared: whether others than background sequences wait for the step.
    """
    others = [each for each in ready if not each.is_background]
    background = next((each for each in ready if each.is_background), None)
    if background is None or not (others or is_shared):
        return _split(ready, budget, next_hash, block_size)
    # A step that others need must stay short.
    reserved = min(block_size, background.num_pending, budget // 2 if others else budget)
    chunks = _split(others, budget - reserved, next_hash, block_size)
    if reserved and next_hash(background) not in _hashes(chunks, block_size):
        chunks.append(background.next_chunk(reserved))
    return chunks


def _split(ready: AbstractSequence[Sequence], budget: int, next_hash: NextHash, block_size: int) -> list[Chunk]:
    """Give the first sequence at least half of the budget."""
    if not ready:
        return []
    first, *others = ready
    size, half, chunks = block_size, -(-budget // 2), []
    # Hashes of the blocks that this step fills, or that the first sequence fills in its next steps.
    coming = set(first.block_hashes[first.num_computed // size : (first.num_computed + budget) // size])
    for sequence in sorted(others, key=lambda each: (-each.priority, each.num_pending)):
        # Tokens that stay reserved for the first sequence.
        reserved = min(first.num_pending, half if sequence.priority == first.priority else budget)
        if reserved == budget:
            break
        if next_hash(sequence) in coming:
            continue  # it waits and takes that block
        chunk = sequence.next_chunk(min(budget - reserved, sequence.num_pending))
        coming.update(_hashes([chunk], size))
        chunks.append(chunk)
        budget -= len(chunk.token_ids)
    return [first.next_chunk(min(budget, first.num_pending)), *chunks]


def _hashes(chunks: AbstractSequence[Chunk], size: int) -> set[bytes]:
    """Return the hashes of the blocks that chunks fill."""
    return {name for chunk in chunks for name in chunk.sequence.block_hashes[chunk.start // size : chunk.end // size]}
