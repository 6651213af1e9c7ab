"""Block accounting against a plain model of it, under any order of calls."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from language_service.cache.blocks import BlockPool

NUM_BLOCKS = 12
NAMES = st.sampled_from([bytes([name]) for name in range(8)])


class Blocks(RuleBasedStateMachine):
    """Owners allocate, fill, share and release; the model knows who holds what, and what each block holds."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: list[list[int]] = []
        self.contents: dict[int, bytes] = {}

    @rule(target=owners, count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> object:
        free, kept = self.pool.num_free, self.pool.num_kept
        blocks = self.pool.allocate(count)
        if count > free:
            assert blocks is None
            assert (self.pool.num_free, self.pool.num_kept) == (free, kept)
            return multiple()
        assert blocks is not None
        assert len(set(blocks)) == count
        assert not set(blocks) & {block for other in self.held for block in other}
        assert self.pool.num_kept == min(kept, free - count), "a kept block was taken before all free ones were"
        for block in blocks:
            self.contents.pop(block, None)
        self.held.append(blocks)
        return blocks

    @rule(blocks=owners, name=NAMES)
    def fill(self, blocks: list[int], name: bytes) -> None:
        known = self.pool.find(name)
        for block in blocks:
            if block not in self.contents:
                self.contents[block] = name
                self.pool.name(block, name)
                assert self.pool.find(name) == (block if known is None else known)
                return

    @rule(target=owners, name=NAMES)
    def reuse(self, name: bytes) -> object:
        block = self.pool.find(name)
        if block is None:
            return multiple()
        assert self.contents[block] == name, "what was found holds something else by now"
        self.pool.share(block)
        self.held.append([block])
        return self.held[-1]

    @rule(blocks=owners)
    def forget(self, blocks: list[int]) -> None:
        self.pool.forget(blocks)
        assert not any(self.pool.find(bytes([name])) in blocks for name in range(8))

    @rule(blocks=consumes(owners))
    def release(self, blocks: list[int]) -> None:
        self.pool.release(blocks)
        self.held.remove(blocks)

    @invariant()
    def is_whole(self) -> None:
        self.pool.check(self.held)
        used = Counter(block for blocks in self.held for block in blocks)
        assert self.pool.num_used == len(used)
        assert self.pool.num_free + self.pool.num_used == NUM_BLOCKS
        assert self.pool.num_kept <= self.pool.num_free


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def make_named(pool: BlockPool, *names: bytes) -> list[int]:
    """Return one block for each name, held."""
    blocks = pool.allocate(len(names))
    assert blocks is not None
    for block, name in zip(blocks, names, strict=True):
        pool.name(block, name)
    return blocks


def test_releasing_twice_is_an_error() -> None:
    """A double release would hand one block to two sequences."""
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    assert blocks
    pool.release(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.release(blocks)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(blocks[0])


def test_what_was_used_least_recently_is_evicted_first_and_ends_before_beginnings() -> None:
    """A prefix whose first block is gone cannot be found, so its rest would be kept for nothing."""
    pool = BlockPool(4)
    first = make_named(pool, b"a", b"ab")
    second = make_named(pool, b"x", b"xy")
    pool.release(first)
    pool.release(second)
    pool.share(first[0])  # used once more, so that it is the most recent
    pool.release(first[:1])
    order = []
    for _ in range(4):
        assert pool.allocate(1) is not None
        order.append([name for name in (b"a", b"ab", b"x", b"xy") if pool.find(name) is None])
    assert order == [[b"ab"], [b"ab", b"xy"], [b"ab", b"x", b"xy"], [b"a", b"ab", b"x", b"xy"]]


def test_two_blocks_of_one_content_are_found_as_one() -> None:
    """Two sequences may compute the same side by side; the second one's block is nothing worth keeping."""
    pool = BlockPool(4)
    (first,), (second,) = make_named(pool, b"a"), make_named(pool, b"a")
    pool.release([second])
    assert (pool.find(b"a"), pool.num_kept) == (first, 0)
    pool.release([first])
    assert (pool.find(b"a"), pool.num_kept) == (first, 1)


@pytest.mark.parametrize("owners", [[[0]], [[0, 1, 2]], [[0, 1], [1]], []])
def test_check_sees_owners_that_do_not_match(owners: list[list[int]]) -> None:
    pool = BlockPool(4)
    assert pool.allocate(2) == [0, 1]
    pool.check([[0, 1]])
    with pytest.raises(AssertionError):
        pool.check(owners)
