"""The store of uploaded images."""

import hashlib
from collections.abc import AsyncIterator

import pytest

from chassis.errors import InvalidArgument, NotFound
from gateway.images.store import ImageStore
from tandem.v1.gateway_pb2 import Image


def make_store(*, max_bytes: int = 100, max_image_bytes: int = 60) -> ImageStore:
    return ImageStore(max_bytes=max_bytes, max_image_bytes=max_image_bytes)


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_an_image_uploaded_in_chunks_is_found_by_its_digest() -> None:
    store = make_store()
    sha256, num_bytes = await store.put(chunks(b"one ", b"image"), b"")
    assert (sha256, num_bytes) == (hashlib.sha256(b"one image").digest(), 9)
    assert (await store.resolve(Image(sha256=sha256), "image", b"")).data == b"one image"


async def test_the_least_recently_used_image_is_evicted() -> None:
    store = make_store()
    first, _ = await store.put(chunks(b"a" * 40), b"")
    second, _ = await store.put(chunks(b"b" * 40), b"")
    await store.resolve(Image(sha256=first), "image", b"")
    await store.put(chunks(b"c" * 40), b"")
    assert (await store.resolve(Image(sha256=first), "image", b"")).data == b"a" * 40
    with pytest.raises(NotFound) as raised:
        await store.resolve(Image(sha256=second), "messages[0].parts[0].image", b"")
    assert (raised.value.reason, raised.value.field) == ("IMAGE_NOT_FOUND", "messages[0].parts[0].image")


async def test_an_image_uploaded_twice_is_stored_once() -> None:
    store = make_store()
    first, _ = await store.put(chunks(b"a" * 40), b"")
    for _ in range(5):
        await store.put(chunks(b"b" * 40), b"")
    assert (await store.resolve(Image(sha256=first), "image", b"")).data == b"a" * 40


async def test_an_image_that_is_too_large_is_rejected_before_its_end() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"x" * 20

    with pytest.raises(InvalidArgument) as raised:
        await make_store().put(endless(), b"")
    assert (raised.value.reason, read) == ("IMAGE_TOO_LARGE", 4)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image(), "IMAGE_EMPTY"),
        (Image(data=b""), "IMAGE_EMPTY"),
        (Image(data=b"x" * 61), "IMAGE_TOO_LARGE"),
        (Image(sha256=b"short"), "BAD_DIGEST"),
    ],
)
async def test_an_invalid_image_is_rejected(image: Image, reason: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await make_store().resolve(image, "image", b"")
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("pieces", "reason"), [([], "IMAGE_EMPTY"), ([b"a", b""], "BAD_CHUNK"), ([b"a" * (2**20 + 1)], "BAD_CHUNK")]
)
async def test_an_invalid_upload_is_rejected(pieces: list[bytes], reason: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await make_store(max_bytes=2**22, max_image_bytes=2**22).put(chunks(*pieces), b"")
    assert raised.value.reason == reason
