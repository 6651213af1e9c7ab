"""Filter texts, images and answers."""

from gateway.filters.filter_set import FilterSet
from gateway.filters.image_filter import ImageFilter
from gateway.filters.word_filter import WordFilter, read_word_lists

__all__ = [
    "FilterSet",
    "ImageFilter",
    "WordFilter",
    "read_word_lists",
]
