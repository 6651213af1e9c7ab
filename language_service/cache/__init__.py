"""Account for KV blocks and the prefixes they hold, in plain Python."""

from language_service.cache.blocks import BlockPool
from language_service.cache.prefix import PrefixHashes, root_hash

__all__ = [
    "BlockPool",
    "PrefixHashes",
    "root_hash",
]
