"""Rotary positions of the tokens of a sequence with images.

In text, a position is the token's index plus a shift. With a grid, a position has three parts: time, row and column. An
image that begins at position p has (p, p + row, p + column) on its grid. Text goes on at p + max(rows, columns), so an
image shifts the text after it. Source: `get_rope_index` of Qwen3-VL in transformers.

A position depends on nothing but the token's index and the images. So it is the same in every chunk.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

Parts = tuple[list[int], list[int], list[int]]  # time, row and column of each token


class Grid(NamedTuple):
    """Rows and columns of the visual tokens of one image."""

    rows: int
    columns: int


class ImageSpan(Protocol):
    """The place of one image in a sequence."""

    @property
    def start(self) -> int:
        """Index of its first token."""
        ...

    @property
    def end(self) -> int:
        """Index after its last token."""
        ...

    @property
    def grid(self) -> Grid | None:
        """Grid of its tokens. None: positions as in text."""
        ...

    @property
    def shift(self) -> int:
        """Position minus index, in the text before it."""
        ...


def shift_after(image: ImageSpan) -> int:
    """Return position minus index, in the text after an image."""
    return image.shift if image.grid is None else image.shift + max(image.grid) - (image.end - image.start)


def shift_at(index: int, images: Sequence[ImageSpan]) -> int:
    """Return position minus index for a token of text.

    Args:
        index: of the token.
        images: all images of the sequence, in order.
    """
    return next((shift_after(image) for image in reversed(images) if image.end <= index), 0)


def token_positions(start: int, end: int, images: Sequence[ImageSpan]) -> Parts:
    """Return the positions of neighbouring tokens.

    Args:
        start: index of the first token.
        end: index after the last token.
        images: all images of the sequence, in order.
    """
    parts: Parts = ([], [], [])
    times, rows, columns = parts
    index, shift = start, shift_at(start, images)
    for image in images:
        first, last = max(start, image.start), min(end, image.end)
        if first >= last or image.grid is None:
            continue
        text, offsets = range(index + shift, first + shift), range(first - image.start, last - image.start)
        position = image.start + image.shift
        times += [*text, *[position] * len(offsets)]
        rows += [*text, *(position + offset // image.grid.columns for offset in offsets)]
        columns += [*text, *(position + offset % image.grid.columns for offset in offsets)]
        index, shift = last, shift_after(image)
    for part in parts:
        part += range(index + shift, end + shift)
    return parts
