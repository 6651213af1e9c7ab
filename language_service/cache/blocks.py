"""Who owns which block of the key-value cache: plain accounting, no tensors."""

from collections import Counter
from collections.abc import Iterable, Sequence


class BlockPool:
    """Hands out block numbers 0 to num_blocks - 1 and takes them back.

    A block has one reference for each sequence that reads it and is free again when the last one lets go.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # A stack: the block freed last is handed out first, while it may still be in the processor's cache.
        self._free = list(reversed(range(num_blocks)))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks somebody holds."""
        return self.num_blocks - len(self._free)

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` free blocks, one reference on each; None, and nothing taken, if fewer are free."""
        if count > len(self._free):
            return None
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each of `blocks`, all of them held already."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free and cannot be shared")
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference from each of `blocks`; those without any left are free."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless free and used make up all blocks and references match what `owners` hold."""
        held = Counter(block for blocks in owners for block in blocks)
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a block is free twice")
        for block, references in enumerate(self._references):
            if references != held[block]:
                raise AssertionError(f"block {block} has {references} references and {held[block]} owners")
            if (block in free) != (references == 0):
                raise AssertionError(f"block {block} is {'both' if references else 'neither'} free and used")
