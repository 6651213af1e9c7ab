"""Account for KV blocks and their prefixes, without tensors."""

from language_service.cache.blocks import BlockPool
from language_service.cache.prefix import PrefixHashes, root_hash

__all__ = [
    "BlockPool",
    "PrefixHashes",
    "root_hash",
]
