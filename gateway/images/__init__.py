"""From one image to its visual tokens, through every cache level."""

from gateway.images.source import VisualTokenSource
from gateway.images.store import ImageStore, RequestImage
from gateway.images.wiring import VisualCacheConfig, open_visual_tokens

__all__ = ["ImageStore", "RequestImage", "VisualCacheConfig", "VisualTokenSource", "open_visual_tokens"]
