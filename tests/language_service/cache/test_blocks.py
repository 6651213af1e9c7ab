"""Compare the block pool with a simple model."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from language_service.cache.blocks import BlockPool

NUM_BLOCKS = 12
HASHES = st.sampled_from([bytes([number]) for number in range(8)])


class Blocks(RuleBasedStateMachine):
    """Owners allocate, fill, share and release blocks.

    The model knows owners and contents.
    """

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.owned: list[list[int]] = []
        self.contents: dict[int, bytes] = {}

    @rule(target=owners, count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> object:
        available, evictable = self.pool.num_available, self.pool.num_evictable
        blocks = self.pool.allocate(count)
        if count > available:
            assert blocks is None
            assert (self.pool.num_available, self.pool.num_evictable) == (available, evictable)
            return multiple()
        assert blocks is not None
        assert len(set(blocks)) == count
        assert not set(blocks) & {block for other in self.owned for block in other}
        assert self.pool.num_evictable == min(evictable, available - count), "evicted a block while others were free"
        for block in blocks:
            self.contents.pop(block, None)
        self.owned.append(blocks)
        return blocks

    @rule(blocks=owners, block_hash=HASHES)
    def fill(self, blocks: list[int], block_hash: bytes) -> None:
        known = self.pool.find(block_hash)
        for block in blocks:
            if block not in self.contents:
                self.contents[block] = block_hash
                self.pool.register(block, block_hash)
                assert self.pool.find(block_hash) == (block if known is None else known)
                return

    @rule(target=owners, block_hash=HASHES)
    def reuse(self, block_hash: bytes) -> object:
        block = self.pool.find(block_hash)
        if block is None:
            return multiple()
        assert self.contents[block] == block_hash, "found a block with other content"
        self.pool.share(block)
        self.owned.append([block])
        return self.owned[-1]

    @rule(blocks=owners)
    def unregister(self, blocks: list[int]) -> None:
        self.pool.unregister(blocks)
        assert not any(self.pool.find(bytes([number])) in blocks for number in range(8))

    @rule(blocks=consumes(owners))
    def release(self, blocks: list[int]) -> None:
        self.pool.release(blocks)
        self.owned.remove(blocks)

    @invariant()
    def matches_the_model(self) -> None:
        self.pool.check(self.owned)
        used = Counter(block for blocks in self.owned for block in blocks)
        assert self.pool.num_used == len(used)
        assert self.pool.num_available + self.pool.num_used == NUM_BLOCKS
        assert self.pool.num_evictable <= self.pool.num_available


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def allocate_full(pool: BlockPool, *hashes: bytes) -> list[int]:
    """Return one used block for each hash."""
    blocks = pool.allocate(len(hashes))
    assert blocks is not None
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.register(block, block_hash)
    return blocks


def test_releasing_twice_is_an_error() -> None:
    """A second release would give one block to two sequences."""
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    assert blocks
    pool.release(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.release(blocks)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(blocks[0])


def test_eviction_takes_the_least_recently_used_blocks_and_the_end_of_a_prefix_first() -> None:
    """Without its first block, a prefix is useless."""
    pool = BlockPool(4)
    first = allocate_full(pool, b"a", b"ab")
    second = allocate_full(pool, b"x", b"xy")
    pool.release(first)
    pool.release(second)
    pool.share(first[0])  # now the most recently used
    pool.release(first[:1])
    order = []
    for _ in range(4):
        assert pool.allocate(1) is not None
        order.append([each for each in (b"a", b"ab", b"x", b"xy") if pool.find(each) is None])
    assert order == [[b"ab"], [b"ab", b"xy"], [b"ab", b"x", b"xy"], [b"a", b"ab", b"x", b"xy"]]


def test_only_one_of_two_equal_blocks_is_registered() -> None:
    """Two sequences may compute the same content in one step.

    The second block becomes free.
    """
    pool = BlockPool(4)
    (first,), (second,) = allocate_full(pool, b"a"), allocate_full(pool, b"a")
    pool.release([second])
    assert (pool.find(b"a"), pool.num_evictable) == (first, 0)
    pool.release([first])
    assert (pool.find(b"a"), pool.num_evictable) == (first, 1)


@pytest.mark.parametrize("owners", [[[0]], [[0, 1, 2]], [[0, 1], [1]], []])
def test_check_detects_owners_that_do_not_match(owners: list[list[int]]) -> None:
    pool = BlockPool(4)
    assert pool.allocate(2) == [0, 1]
    pool.check([[0, 1]])
    with pytest.raises(AssertionError):
        pool.check(owners)
