"""Who owns which block of the key-value cache and what full ones hold: plain accounting, no tensors."""

from collections import Counter
from collections.abc import Iterable, Sequence


class BlockPool:
    """Hands out block numbers 0 to num_blocks - 1, takes them back, and remembers what full ones hold.

    A block has one reference for each sequence that reads it. When the last one lets go, a block whose content was
    given a name is kept, to be found by that name until its place is needed; any other is free again.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # A stack: the block freed last is handed out first, while it may still be in the processor's cache.
        self._free = list(reversed(range(num_blocks)))
        self._kept: dict[int, None] = {}  # an ordered set, the one used least recently first
        self._references = [0] * num_blocks
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, kept ones among them: as many can be allocated."""
        return len(self._free) + len(self._kept)

    @property
    def num_kept(self) -> int:
        """Blocks nobody holds whose content can be found."""
        return len(self._kept)

    @property
    def num_used(self) -> int:
        """Blocks somebody holds."""
        return self.num_blocks - self.num_free

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks nobody holds, one reference on each; None, and nothing taken, if there are fewer.

        What kept ones hold is lost, but only once no others are left, and least recently used ones first.
        """
        if count > self.num_free:
            return None
        self._evict(count - len(self._free))
        blocks = [self._free.pop() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """Add one reference to `block`, which is held or kept."""
        if self._references[block] == 0 and block not in self._kept:
            raise ValueError(f"block {block} is free and cannot be shared")
        self._kept.pop(block, None)
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference from each of `blocks`, which lie in the order of their sequence."""
        # Backwards, so that the end of a prefix is evicted before its beginning, without which it cannot be found.
        for block in reversed(blocks):
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] == 0:
                if block in self._names:
                    self._kept[block] = None
                else:
                    self._free.append(block)

    def is_held(self, block: int) -> bool:
        """Whether somebody holds `block`."""
        return self._references[block] > 0

    def held_only_by(self, owners: Iterable[Sequence[int]]) -> set[int]:
        """Return the blocks of `owners` that nobody else holds."""
        held = Counter(block for blocks in owners for block in blocks)
        return {block for block, count in held.items() if count == self._references[block]}

    def find(self, name: bytes) -> int | None:
        """Return the block whose content has this name, held or kept."""
        return self._named.get(name)

    def name(self, block: int, name: bytes) -> None:
        """Name the content of a held block, which never changes again; no effect if another block has that content."""
        if name not in self._named and block not in self._names:
            self._names[block] = name
            self._named[name] = block

    def forget(self, blocks: Iterable[int]) -> None:
        """Let the content of `blocks` not be found any more."""
        for block in blocks:
            if block in self._names:
                del self._named[self._names.pop(block)]
            if block in self._kept:
                del self._kept[block]
                self._free.append(block)

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless free, kept and used make up all blocks and references match `owners`."""
        held = Counter(block for blocks in owners for block in blocks)
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a block is free twice")
        if {block: name for name, block in self._named.items()} != self._names:
            raise AssertionError("names and blocks do not match")
        for block, references in enumerate(self._references):
            if references != held[block]:
                raise AssertionError(f"block {block} has {references} references and {held[block]} owners")
            states = (block in free, block in self._kept, references > 0)
            if sum(states) != 1:
                raise AssertionError(f"block {block} is not exactly one of free, kept and used: {states}")
            if block in (free if block in self._names else self._kept):
                raise AssertionError(f"block {block} is free with a name or kept without one")

    def _evict(self, count: int) -> None:
        for _ in range(count):
            self.forget([next(iter(self._kept))])
