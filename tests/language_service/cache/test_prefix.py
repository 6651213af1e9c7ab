"""Block hashes are equal exactly if the prefixes are."""

from hashlib import sha256
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from language_service.cache.prefix import PrefixHashes, root_hash

BLOCK_SIZE = 4
ROOT = root_hash(model_digest=bytes(32), salt=b"")

Segment = list[int] | tuple[int, int]  # text, or an image: its number, and its positions

segments = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6) | st.tuples(st.integers(0, 2), st.integers(1, 6)), max_size=5
)


def hash_blocks(prompt: list[Segment], root: bytes = ROOT) -> list[bytes]:
    hashes = PrefixHashes(root, block_size=BLOCK_SIZE)
    for segment in prompt:
        if isinstance(segment, tuple):
            hashes.add_image(sha256(bytes([segment[0]])).digest(), segment[1])
        else:
            hashes.add_text(segment)
    return hashes.hashes


def blocks(prompt: list[Segment]) -> list[list[object]]:
    """Return the prefix of each full block, written out."""
    positions: list[object] = []
    for segment in prompt:
        if isinstance(segment, tuple):
            positions += [(segment[0], offset) for offset in range(segment[1])]
        else:
            positions += segment
    return [positions[:end] for end in range(BLOCK_SIZE, len(positions) + 1, BLOCK_SIZE)]


@settings(max_examples=300, deadline=None)
@given(first=segments, second=segments)
@example(first=[(0, 4)], second=[[0, 1, 2, 3]])  # positions of an image are no token ids
@example(first=[(0, 2), (1, 2)], second=[(1, 2), (0, 2)])
@example(first=[(0, 2), (0, 2)], second=[(0, 4)])
def test_hashes_are_equal_exactly_if_the_prefixes_are(first: list[Segment], second: list[Segment]) -> None:
    equal = [one == other for one, other in zip(hash_blocks(first), hash_blocks(second), strict=False)]
    assert equal == [one == other for one, other in zip(blocks(first), blocks(second), strict=False)]


@given(tokens=st.lists(st.integers(0, 200_000), max_size=30), cuts=st.lists(st.integers(0, 30)))
def test_hashes_do_not_depend_on_how_text_is_split(tokens: list[int], cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(tokens)), len(tokens)]
    parts: list[Segment] = [tokens[start:end] for start, end in pairwise(edges)]
    assert hash_blocks(parts) == hash_blocks([tokens])


def test_another_salt_or_model_gives_other_hashes() -> None:
    roots = [
        root_hash(model_digest=digest, salt=salt)
        for digest in (bytes(32), bytes([1] * 32))
        for salt in (b"", b"a", b"b", bytes(64))
    ]
    prompt: list[Segment] = [[1, 2, 3], (0, 9)]
    hashes = [each for root in roots for each in hash_blocks(prompt, root)]
    assert len(set(hashes)) == len(hashes) == 8 * 3
