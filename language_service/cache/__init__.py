"""Account for KV blocks and prefixes. Plain Python."""

from language_service.cache.blocks import BlockPool
from language_service.cache.prefix import PrefixNames, root_name

__all__ = [
    "BlockPool",
    "PrefixNames",
    "root_name",
]
