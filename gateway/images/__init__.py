"""From one image to its visual tokens, through every cache level."""

from gateway.images.memory_cache import VisualCache
from gateway.images.source import VisualTokenSource
from gateway.images.store import ImageStore, RequestImage

__all__ = [
    "ImageStore",
    "RequestImage",
    "VisualCache",
    "VisualTokenSource",
]
