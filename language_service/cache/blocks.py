"""Account for the blocks of the KV cache. No tensors."""

from collections import Counter
from collections.abc import Iterable, Sequence


class BlockPool:
    """Allocates and frees the blocks 0 to num_blocks - 1.

    Every block is in one of three states:

    - used: one or more sequences read it, each with one reference.
    - evictable: no sequence reads it, but its content has a hash and can be reused until the block is needed.
    - free: no sequence reads it and its content cannot be reused.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # A stack: the block freed last is handed out first, while it may still be in the processor's cache.
        self._free = list(reversed(range(num_blocks)))
        self._evictable: dict[int, None] = {}  # an ordered set, least recently used first
        self._references = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated: free and evictable ones."""
        return len(self._free) + len(self._evictable)

    @property
    def num_evictable(self) -> int:
        """Blocks that no sequence uses and that hold reusable content."""
        return len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks that sequences use."""
        return self.num_blocks - self.num_available

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks, or none, with one reference each.

        Free blocks go first. Then the least recently used evictable blocks are evicted, and their content is lost.

        Returns:
            The blocks, or None if fewer than `count` are available.
        """
        if count > self.num_available:
            return None
        self._evict(count - len(self._free))
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """Add one reference to a used or evictable block.

        Raises:
            ValueError: the block is free.
        """
        if self._references[block] == 0 and block not in self._evictable:
            raise ValueError(f"block {block} is free and cannot be shared")
        self._evictable.pop(block, None)
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference from each block of a sequence.

        The blocks must be in the order of the sequence.

        Raises:
            ValueError: a block has no reference.
        """
        # The end of a prefix is useless without its beginning. Backwards, so that the end is evicted first.
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._hash_of:
                    self._evictable[block] = None
                else:
                    self._free.append(block)

    def is_used(self, block: int) -> bool:
        """Return whether a sequence uses this block."""
        return self._references[block] > 0

    def used_only_by(self, owners: Iterable[Sequence[int]]) -> set[int]:
        """Return the blocks of `owners` that no other sequence uses."""
        owned = Counter(block for blocks in owners for block in blocks)
        return {block for block, count in owned.items() if count == self._references[block]}

    def find(self, block_hash: bytes) -> int | None:
        """Return the used or evictable block with this hash."""
        return self._block_of.get(block_hash)

    def register(self, block: int, block_hash: bytes) -> None:
        """Let `find` return a full block.

        Its content must never change again.

        Does nothing if the block has a hash already, or another block has this one.
        """
        if block_hash not in self._block_of and block not in self._hash_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def unregister(self, blocks: Iterable[int]) -> None:
        """Stop `find` from returning these blocks. Evictable ones become free."""
        for block in blocks:
            if block in self._hash_of:
                del self._block_of[self._hash_of.pop(block)]
            if block in self._evictable:
                del self._evictable[block]
                self._free.append(block)

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """Check the accounting against the blocks of every sequence.

        Raises:
            AssertionError: a block is not in exactly one state, or its references do not match `owners`.
        """
        owned = Counter(block for blocks in owners for block in blocks)
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a block is free twice")
        if {block: block_hash for block_hash, block in self._block_of.items()} != self._hash_of:
            raise AssertionError("hashes and blocks do not match")
        for block, references in enumerate(self._references):
            if references != owned[block]:
                raise AssertionError(f"block {block} has {references} references and {owned[block]} owners")
            states = (block in free, block in self._evictable, references > 0)
            if sum(states) != 1:
                raise AssertionError(f"block {block} is not exactly one of free, evictable and used: {states}")
            if block in (free if block in self._hash_of else self._evictable):
                raise AssertionError(f"block {block} is free with a hash or evictable without one")

    def _evict(self, count: int) -> None:
        for _ in range(count):
            self.unregister([next(iter(self._evictable))])
