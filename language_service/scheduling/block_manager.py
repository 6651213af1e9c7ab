"""Give sequences their blocks: new ones and cached ones."""

from itertools import takewhile

from language_service.cache import BlockPool
from language_service.scheduling.sequence import Sequence


class BlockManager:
    """Keeps the blocks of sequences in step with their tokens.

    It decides nothing. The scheduler does.
    """

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size  # tokens
        self.fresh_blocks: list[int] = []  # allocated since the last batch
        self.num_cached_tokens = 0  # taken from the prefix cache since the last batch

    def num_blocks(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self._block_size)

    def reserve(self, sequence: Sequence, num_blocks: int) -> bool:
        """Allocate blocks up to `num_blocks` in all, or none.

        Returns False, and takes none, if too few are available.
        """
        if num_blocks <= len(sequence.blocks):
            return True
        fresh = self._pool.allocate(num_blocks - len(sequence.blocks))
        if fresh is None:
            return False
        sequence.blocks += fresh
        self.fresh_blocks += fresh
        return True

    def reserve_some(self, sequence: Sequence, num_more: int) -> int:
        """Allocate blocks for `num_more` tokens, if there are some.

        Returns how many of them have room after the tokens of `sequence`.
        """
        length = len(sequence.token_ids)
        self.reserve(sequence, self.num_blocks(length + num_more))
        return min(num_more, len(sequence.blocks) * self._block_size - length)

    def trim(self, sequence: Sequence, num_tokens: int) -> None:
        """Free the blocks that `num_tokens` tokens do not need."""
        self._pool.release(sequence.truncate_blocks(self.num_blocks(num_tokens)))

    def free(self, sequence: Sequence, *, reusable: bool = True) -> None:
        """Free all blocks of `sequence`.

        Args:
            sequence: it starts over at its first token, if it runs again.
            reusable: whether other sequences may still take the content of its full blocks.
        """
        if reusable:
            self._register_full(sequence)
        else:
            self._pool.unregister(sequence.blocks)
        self.trim(sequence, 0)
        sequence.num_computed = sequence.num_registered = 0

    def record_computed(self, sequence: Sequence, start: int, end: int) -> None:
        """Record that a step computed tokens `start` to `end`."""
        sequence.num_computed = end
        sequence.num_ever_computed = max(sequence.num_ever_computed, end)
        for index in range(start // self._block_size, self.num_blocks(end)):
            sequence.cache_hits.pop(index, None)  # a hit before a preemption, but computed now
        self._register_full(sequence)

    def take_cached(self, sequence: Sequence) -> None:
        """Use cached blocks for the next tokens, if any exist."""
        size = self._block_size
        while (block_hash := self.next_hash(sequence)) is not None and (
            block := self._pool.find(block_hash)
        ) is not None:
            index = sequence.num_computed // size
            end = (index + 1) * size
            self._pool.share(block)
            self._pool.release(sequence.blocks[index : index + 1])
            sequence.blocks[index : index + 1] = [block]
            num_saved = end - max(index * size, sequence.num_ever_computed)
            if num_saved > 0 and index not in sequence.cache_hits:
                sequence.cache_hits[index] = num_saved
                self.num_cached_tokens += num_saved
            sequence.num_computed = end

    def next_hash(self, sequence: Sequence) -> bytes | None:
        """Return the hash of the block that `sequence` needs next.

        Returns None if it must compute that block itself.
        """
        index = sequence.num_computed // self._block_size
        return sequence.block_hashes[index] if index < self._num_shareable(sequence) else None

    def shared_with_others(self, sequence: Sequence) -> set[int]:
        """Return the blocks of others that `sequence` would share.

        It must have no blocks yet. Evictable blocks do not count.
        """
        hashes = sequence.block_hashes[: self._num_shareable(sequence)]
        cached = takewhile(lambda block: block is not None, map(self._pool.find, hashes))
        return {block for block in cached if block is not None and self._pool.is_used(block)}

    def rewind(self, sequence: Sequence) -> None:
        """Let the last token be computed again, for its logits.

        It was computed before the prompt was known to end there.
        """
        size = self._block_size
        if sequence.num_computed % size:
            sequence.num_computed -= 1
            return
        # Other sequences may read a full block by now. So replace it instead of writing to it.
        sequence.num_computed -= size
        sequence.cache_hits.pop(sequence.num_computed // size, None)
        sequence.num_registered = min(sequence.num_registered, sequence.num_computed // size)
        self._pool.release([sequence.blocks.pop()])

    def _num_shareable(self, sequence: Sequence) -> int:
        """Return how many leading blocks may come from others.

        The last token of a prompt is always computed.
        """
        num_tokens = len(sequence.token_ids) - sequence.prompt_ended
        return min(len(sequence.block_hashes), num_tokens // self._block_size)

    def _register_full(self, sequence: Sequence) -> None:
        """Let others find the blocks that are full now."""
        num_full = min(sequence.num_computed // self._block_size, len(sequence.block_hashes))
        for index in range(sequence.num_registered, num_full):
            self._pool.register(sequence.blocks[index], sequence.block_hashes[index])
        sequence.num_registered = max(sequence.num_registered, num_full)
