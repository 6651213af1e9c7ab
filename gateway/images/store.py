"""Images of clients, by bytes or digest.

Only the vision service decodes them.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from prometheus_client import Gauge

from chassis.errors import InvalidArgument, NotFound
from chassis.lru import LruStore
from chassis.verified_cache import sha256_of
from checkpoint.identity import DIGEST_BYTES
from tandem.v1 import gateway_pb2

if TYPE_CHECKING:
    from gateway.images.shared_images import SharedImages  # imports the Redis client, which few gateways need

IMAGE_STORE_BYTES = Gauge("tandem_gateway_image_store_bytes", "Bytes of all images that clients have uploaded.")


_MAX_CHUNK_BYTES = 2**20
# SHA-256 of this many bytes takes well under a millisecond. Larger images are hashed in a thread.
_MAX_INLINE_HASH_BYTES = 2**18


class Held(Protocol):
    """Counts the bytes that a request holds."""

    def grow(self, num_bytes: int) -> None:
        """Count more, or raise ResourceExhausted."""

    def shrink(self, num_bytes: int) -> None:
        """Count less."""


class _Uncounted:
    """Counts nothing.

    For requests of the gateway itself, whose number is bounded.
    """

    def grow(self, num_bytes: int) -> None:
        """Do nothing."""

    def shrink(self, num_bytes: int) -> None:
        """Do nothing."""


UNCOUNTED: Held = _Uncounted()


@dataclass(slots=True)
class RequestImage:
    """An image of a request, with its bytes at first."""

    field: str  # in the request, for example 'messages[0].parts[1].image'
    data: bytes
    sha256: bytes
    held: Held = UNCOUNTED  # counts the bytes of an image given by digest. Others are counted with their request

    def drop(self) -> None:
        """Forget the bytes of an encoded image."""
        self.held.shrink(len(self.data))
        self.data = b""


async def _hash(data: bytes) -> bytes:
    """Return the SHA-256 (32 bytes) without blocking the event loop."""
    if len(data) <= _MAX_INLINE_HASH_BYTES:
        return sha256_of(data)
    return await asyncio.to_thread(sha256_of, data)


def check_size(num_bytes: int, *, max_bytes: int, field: str) -> None:
    """Check the size of an image file.

    Raises:
        InvalidArgument: reason 'IMAGE_EMPTY' or 'IMAGE_TOO_LARGE'.
    """
    if num_bytes == 0:
        raise InvalidArgument("The image is empty.", reason="IMAGE_EMPTY", field=field)
    if num_bytes > max_bytes:
        raise InvalidArgument(
            f"The image has more than {max_bytes} bytes, send a smaller one.",
            reason="IMAGE_TOO_LARGE",
            field=field,
            metadata={"max_bytes": str(max_bytes)},
        )


class ImageStore:
    """LRU store of uploaded images by cache salt and SHA-256.

    For one event loop. An image is found with the salt of its tenant only, so no tenant learns about the images of
    another. With `shared`, images that another gateway got are found too.
    """

    def __init__(self, *, max_bytes: int, max_image_bytes: int, shared: "SharedImages | None" = None) -> None:
        """Start empty.

        Args:
            max_bytes: limit for all images together.
            max_image_bytes: limit for each image.
            shared: the images of all gateways.
        """
        self._shared = shared
        self._max_image_bytes = max_image_bytes
        self._images: LruStore[tuple[bytes, bytes], bytes] = LruStore(max_bytes=max_bytes)

    async def put(self, chunks: AsyncIterator[bytes], salt: bytes, held: Held = UNCOUNTED) -> tuple[bytes, int]:
        """Store an image and return its SHA-256 and size.

        Args:
            chunks: the file.
            salt: the tenant's cache salt.
            held: counts the chunks.

        Raises:
            ResourceExhausted: reason 'BYTES_BUSY'.
            InvalidArgument: reason 'BAD_CHUNK', 'IMAGE_EMPTY' or 'IMAGE_TOO_LARGE'. The other chunks are not read.
        """
        data = bytearray()
        max_bytes = min(self._max_image_bytes, self._images.max_bytes)
        async for chunk in chunks:
            if not 0 < len(chunk) <= _MAX_CHUNK_BYTES:
                raise InvalidArgument(
                    f"A chunk has {len(chunk)} bytes, send 1 to {_MAX_CHUNK_BYTES}.", reason="BAD_CHUNK", field="chunk"
                )
            check_size(len(data) + len(chunk), max_bytes=max_bytes, field="chunk")
            held.grow(len(chunk))
            data += chunk
        check_size(len(data), max_bytes=max_bytes, field="chunk")
        image = bytes(data)
        sha256 = await _hash(image)
        self._keep(image, sha256, salt)
        if self._shared is not None:
            await self._shared.put(sha256, image, salt)
        return sha256, len(image)

    async def resolve(self, image: gateway_pb2.Image, field: str, salt: bytes, held: Held = UNCOUNTED) -> RequestImage:
        """Return a request's image, given by bytes or digest.

        Args:
            image: the image's message.
            field: its field in the request, for errors.
            salt: the tenant's cache salt.
            held: counts the bytes of an image given by digest.

        Raises:
            ResourceExhausted: reason 'BYTES_BUSY'.
            InvalidArgument: reason 'IMAGE_EMPTY', 'IMAGE_TOO_LARGE' or 'BAD_DIGEST'.
            NotFound: reason 'IMAGE_NOT_FOUND', the digest was never uploaded, or the image was evicted.
        """
        if image.HasField("sha256"):
            return RequestImage(field, await self._get(image.sha256, field, salt, held), image.sha256, held)
        check_size(len(image.data), max_bytes=self._max_image_bytes, field=field)
        return RequestImage(field, image.data, await _hash(image.data))

    async def _get(self, sha256: bytes, field: str, salt: bytes, held: Held) -> bytes:
        if len(sha256) != DIGEST_BYTES:
            raise InvalidArgument(
                f"A SHA-256 has {DIGEST_BYTES} bytes, not {len(sha256)}.", reason="BAD_DIGEST", field=field
            )
        with self._images.use((salt, sha256)) as image:
            if image is not None:
                held.grow(len(image))
                return image
        image = await self._fetch(sha256, field, salt, held)
        check_size(len(image), max_bytes=self._max_image_bytes, field=field)  # another gateway may allow more
        self._keep(image, sha256, salt)
        return image

    async def _fetch(self, sha256: bytes, field: str, salt: bytes, held: Held) -> bytes:
        """Return an image of another gateway."""
        held.grow(self._max_image_bytes if self._shared is not None else 0)  # its size is not known yet
        image = await self._shared.get(sha256, salt) if self._shared is not None else None
        if image is None:
            raise NotFound(
                "No image with this digest is stored, upload it again.", reason="IMAGE_NOT_FOUND", field=field
            )
        held.shrink(self._max_image_bytes - len(image))
        return image

    def _keep(self, image: bytes, sha256: bytes, salt: bytes) -> None:
        self._images.put((salt, sha256), image, len(image))
        IMAGE_STORE_BYTES.set(self._images.num_bytes)
