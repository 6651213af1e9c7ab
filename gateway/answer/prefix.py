"""Which conversations share the beginning of their prompts."""

import hashlib
from collections.abc import Sequence

from processing import ChatMessage


def prefix_digest(messages: Sequence[ChatMessage], images: Sequence[bytes], salt: bytes) -> bytes:
    """Return a digest of the beginning of a conversation.

    It ends with the first image, or else with the first message of the user. So it stays the same as the conversation
    goes on, and other questions about the image have it too.

    Args:
        messages: of the conversation.
        images: SHA-256 digests of the images, in order.
        salt: of the tenant's caches.
    """
    digest = hashlib.blake2b(salt, digest_size=32)
    for message in messages:
        for part in message["content"]:
            if part["type"] != "text":
                digest.update(images[0])
                return digest.digest()
            digest.update(f"{message['role']} {len(part['text'])} {part['text']}".encode(errors="surrogatepass"))
        if message["role"] == "user":
            break
    return digest.digest()
