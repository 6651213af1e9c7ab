"""Turn images into visual tokens, through every cache level."""

from gateway.images.entry import TokenShape
from gateway.images.source import VisualTokenSource
from gateway.images.store import ImageStore, RequestImage
from gateway.images.wiring import VisualCacheConfig, open_token_source

__all__ = ["ImageStore", "RequestImage", "TokenShape", "VisualCacheConfig", "VisualTokenSource", "open_token_source"]
