"""Block accounting against a plain model of it, under any order of calls."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from language_service.cache.blocks import BlockPool

NUM_BLOCKS = 12


class Blocks(RuleBasedStateMachine):
    """Owners allocate, share and release; the model counts who holds what."""

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.held: list[list[int]] = []

    @rule(target=owners, count=st.integers(0, NUM_BLOCKS + 2))
    def allocate(self, count: int) -> object:
        free = self.pool.num_free
        blocks = self.pool.allocate(count)
        if count > free:
            assert blocks is None
            assert self.pool.num_free == free
            return multiple()
        assert blocks is not None
        assert len(set(blocks)) == count
        assert not set(blocks) & {block for other in self.held for block in other}
        self.held.append(blocks)
        return blocks

    @rule(target=owners, blocks=owners)
    def share(self, blocks: list[int]) -> list[int]:
        self.pool.share(blocks)
        self.held.append(list(blocks))
        return self.held[-1]

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


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_releasing_twice_is_an_error() -> None:
    """A double release would hand one block to two sequences."""
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    assert blocks
    pool.release(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.release(blocks)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share(blocks)


@pytest.mark.parametrize("owners", [[[0]], [[0, 1, 2]], [[0, 1], [1]], []])
def test_check_sees_owners_that_do_not_match(owners: list[list[int]]) -> None:
    pool = BlockPool(4)
    assert pool.allocate(2) == [0, 1]
    pool.check([[0, 1]])
    with pytest.raises(AssertionError):
        pool.check(owners)
