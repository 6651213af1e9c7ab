"""Turn images into visual tokens, through every cache level."""

from gateway.images.entry import TokenShape
from gateway.images.source import VisualTokenSource
from gateway.images.store import UNCOUNTED, Held, ImageStore, RequestImage
from gateway.images.wiring import ImagesConfig, SharedCacheConfig, open_images

__all__ = [
    "UNCOUNTED",
    "Held",
    "ImageStore",
    "ImagesConfig",
    "RequestImage",
    "SharedCacheConfig",
    "TokenShape",
    "VisualTokenSource",
    "open_images",
]
