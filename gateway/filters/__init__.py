"""Refuse, end or mask texts, images and answers."""

from gateway.filters.filters import Filters
from gateway.filters.image_filter import ImageFilter
from gateway.filters.word_filter import WordFilter, read_word_lists

__all__ = [
    "Filters",
    "ImageFilter",
    "WordFilter",
    "read_word_lists",
]
