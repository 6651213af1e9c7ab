"""Names of blocks are equal exactly where everything up to the block's end is."""

from hashlib import sha256
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from language_service.cache.prefix import PrefixNames, root_name

BLOCK_SIZE = 4
ROOT = root_name(model_digest=bytes(32), salt=b"")

Segment = list[int] | tuple[int, int]  # text, or an image: which one, and how many positions

segments = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6) | st.tuples(st.integers(0, 2), st.integers(1, 6)), max_size=5
)


def name(prompt: list[Segment], root: bytes = ROOT) -> list[bytes]:
    names = PrefixNames(root, block_size=BLOCK_SIZE)
    for segment in prompt:
        if isinstance(segment, tuple):
            names.add_image(sha256(bytes([segment[0]])).digest(), segment[1])
        else:
            names.add_text(segment)
    return names.names


def blocks(prompt: list[Segment]) -> list[list[object]]:
    """Return what each full block stands for: every position up to its end, spelt out."""
    positions: list[object] = []
    for segment in prompt:
        if isinstance(segment, tuple):
            positions += [(segment[0], offset) for offset in range(segment[1])]
        else:
            positions += segment
    return [positions[:end] for end in range(BLOCK_SIZE, len(positions) + 1, BLOCK_SIZE)]


@settings(max_examples=300, deadline=None)
@given(first=segments, second=segments)
@example(first=[(0, 4)], second=[[0, 1, 2, 3]])  # an image's offsets are no token ids
@example(first=[(0, 2), (1, 2)], second=[(1, 2), (0, 2)])
@example(first=[(0, 2), (0, 2)], second=[(0, 4)])
def test_names_are_equal_exactly_where_all_before_is(first: list[Segment], second: list[Segment]) -> None:
    equal = [one == other for one, other in zip(name(first), name(second), strict=False)]
    assert equal == [one == other for one, other in zip(blocks(first), blocks(second), strict=False)]


@given(tokens=st.lists(st.integers(0, 200_000), max_size=30), cuts=st.lists(st.integers(0, 30)))
def test_how_text_arrives_does_not_matter(tokens: list[int], cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(tokens)), len(tokens)]
    pieces: list[Segment] = [tokens[start:end] for start, end in pairwise(edges)]
    assert name(pieces) == name([tokens])


def test_nothing_is_shared_under_another_salt_or_model() -> None:
    roots = [
        root_name(model_digest=digest, salt=salt)
        for digest in (bytes(32), bytes([1] * 32))
        for salt in (b"", b"a", b"b", bytes(64))
    ]
    prompt: list[Segment] = [[1, 2, 3], (0, 9)]
    names = [one for root in roots for one in name(prompt, root)]
    assert len(set(names)) == len(names) == 8 * 3
