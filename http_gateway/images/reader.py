"""Read the images of requests: data: URLs, digests and remote URLs."""

import base64
import binascii
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from chassis.errors import InvalidArgument
from http_gateway.images.hosts import ImageHosts
from http_gateway.images.remote import Allowance, RemoteImages
from http_gateway.wire.bodies import BodyBudget
from tandem.v1 import gateway_pb2

_DIGEST = re.compile(r"tandem:([0-9a-f]{64})")
_MAX_HEAD_CHARACTERS = 128  # of a data: URL


class ImageReader:
    """Reads the images of requests."""

    def __init__(self, remote: RemoteImages, *, max_bytes: int) -> None:
        """Take a fetcher and the size of the largest file."""
        self._remote = remote
        self._max_bytes = max_bytes

    @contextmanager
    def for_request(self) -> "Iterator[RequestImages]":
        """Yield a reader of the images of one request."""
        with self._remote.allowance() as allowance:
            yield RequestImages(self._remote, allowance, self._max_bytes)


class RequestImages:
    """Reads the images of one request, which share its limits."""

    def __init__(self, remote: RemoteImages, allowance: Allowance, max_bytes: int) -> None:
        self._remote = remote
        self._allowance = allowance
        self._max_bytes = max_bytes

    async def read(self, url: str, place: str) -> gateway_pb2.Image:
        """Return the image that a URL stands for.

        Args:
            url: 'data:image/...;base64,...', 'tandem:' with the id of an uploaded file, or an http or https URL.
            place: field of the URL in the request, for errors.

        Raises:
            InvalidArgument: reason 'BAD_IMAGE_URL', 'IMAGE_TOO_LARGE', or as `RemoteImages.fetch`.
            ResourceExhausted: reason 'BODIES_BUSY'.
        """
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            return gateway_pb2.Image(data=read_data_url(url, place, max_bytes=self._max_bytes))
        if scheme in ("http", "https"):
            return gateway_pb2.Image(data=await self._remote.fetch(url, place, self._allowance))
        if digest := _DIGEST.fullmatch(url):
            return gateway_pb2.Image(sha256=bytes.fromhex(digest[1]))
        raise _bad_url("The URL of an image must begin with data:image/, https:// or tandem: and a file's id.", place)


@asynccontextmanager
async def open_image_reader(
    *,
    hosts: Iterable[str],
    networks: Iterable[str],
    timeout_s: float,
    max_bytes: int,
    max_request_bytes: int,
    budget: BodyBudget,
) -> AsyncIterator[ImageReader]:
    """Yield a reader. Its connections close with the block.

    Args:
        hosts: from which images may be fetched, none for no remote images.
        networks: private networks that hosts may be in.
        timeout_s: longest time to fetch the remote images of a request.
        max_bytes: largest image file.
        max_request_bytes: most bytes of all remote images of a request.
        budget: counts the bytes of remote images while they arrive.

    Raises:
        ValueError: a host or network is invalid.
    """
    remote = RemoteImages(
        ImageHosts(hosts, networks),
        timeout_s=timeout_s,
        max_bytes=max_bytes,
        max_request_bytes=max_request_bytes,
        budget=budget,
    )
    try:
        yield ImageReader(remote, max_bytes=max_bytes)
    finally:
        await remote.close()


def read_data_url(url: str, place: str, *, max_bytes: int) -> bytes:
    """Return the file in a data: URL.

    Args:
        url: with the scheme 'data'.
        place: field of the URL in the request, for errors.
        max_bytes: largest file.

    Raises:
        InvalidArgument: reason 'BAD_IMAGE_URL' or 'IMAGE_TOO_LARGE'.
    """
    head, comma, encoded = url.partition(",")
    kind, *parameters = head[len("data:") : _MAX_HEAD_CHARACTERS].lower().split(";")
    if not comma or not kind.startswith("image/") or parameters[-1:] != ["base64"]:
        raise _bad_url("A data: URL of an image must begin as data:image/png;base64, does.", place)
    if len(encoded) // 4 * 3 > max_bytes + 2:  # 2 of padding
        raise InvalidArgument(
            f"The image has more than {max_bytes} bytes, send a smaller one.",
            reason="IMAGE_TOO_LARGE",
            field=place,
            metadata={"max_bytes": str(max_bytes)},
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        raise _bad_url("The data: URL is not valid base64.", place) from None


def _bad_url(message: str, place: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_IMAGE_URL", field=place)
