"""A client's uploads, for gateways that do not know them.

A client may reach several gateways, and each may lose an image at any time.
"""

import threading
from typing import TypeVar

from chassis.errors import InvalidArgument, TandemError
from chassis.lru import LruStore
from tandem.client.request import check_size
from tandem.v1 import gateway_pb2

_MAX_BYTES = 64 * 2**20

Request = TypeVar("Request", gateway_pb2.GatewayGenerateRequest, gateway_pb2.CountTokensRequest)


class Uploads:
    """The latest uploads by SHA-256. Thread-safe."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        """Start empty.

        Args:
            max_bytes: limit for all of them. The least recently used leave.
        """
        self._images: LruStore[bytes, bytes] = LruStore(max_bytes=max_bytes)
        self._lock = threading.Lock()

    def add(self, sha256: bytes, image: bytes) -> None:
        """Remember an upload."""
        with self._lock:
            self._images.put(sha256, image, len(image))

    def replaced(self, request: Request, error: TandemError, max_message_bytes: int) -> Request | None:
        """Return a refused request with the bytes of its uploads.

        Args:
            request: names images by their digests.
            error: of the call.
            max_message_bytes: largest request that the gateway takes.

        Returns:
            None if the error is another one, an image is unknown here too, or they are too large together.
        """
        if error.reason != "IMAGE_NOT_FOUND":
            return None
        copy = type(request)()
        copy.CopyFrom(request)
        for message in copy.messages:
            for part in message.parts:
                if part.image.WhichOneof("source") == "sha256":
                    with self._lock, self._images.use(part.image.sha256) as image:
                        if image is None:
                            return None
                        part.image.data = image
        try:
            check_size(copy, max_message_bytes)
        except InvalidArgument:
            return None
        return copy
