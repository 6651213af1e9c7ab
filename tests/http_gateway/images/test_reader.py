"""URLs of images that need no network."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chassis.errors import InvalidArgument
from http_gateway.images import RequestImages, open_image_reader
from http_gateway.images.reader import read_data_url
from http_gateway.wire.bodies import BodyBudget

DIGEST = "0123456789abcdef" * 4
LIMIT = 100


@pytest.fixture
async def reader() -> AsyncIterator[RequestImages]:
    limits: dict[str, Any] = {"timeout_s": 1, "max_bytes": LIMIT, "max_request_bytes": 1000, "budget": BodyBudget(1000)}
    async with open_image_reader(hosts=(), networks=(), **limits) as images:
        with images.for_request() as reader:
            yield reader


def data_url(data: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "head", ["data:image/png;base64,", "DATA:image/JPEG;base64,", "data:image/webp;name=a.webp;base64,"]
)
@pytest.mark.parametrize("size", [0, 1, 2, 3, LIMIT])
async def test_a_data_url_has_the_bytes_of_its_file(reader: RequestImages, head: str, size: int) -> None:
    data = bytes(range(size))
    image = await reader.read(data_url(data, head), "f")
    assert (image.WhichOneof("source"), image.data) == ("data", data)


async def test_a_file_is_named_by_its_digest(reader: RequestImages) -> None:
    image = await reader.read(f"tandem:{DIGEST}", "f")
    assert (image.WhichOneof("source"), image.sha256.hex()) == ("sha256", DIGEST)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "image.png",
        "file:///etc/passwd",
        "ftp://a.example/x.png",
        "javascript:alert(1)",
        DIGEST,
        f"tandem:{DIGEST[1:]}",
        f"tandem:{DIGEST.upper()}",
        f"tandem:{DIGEST}/",
        "data:",
        "data:image/png;base64",
        "data:image/png,abcd",
        "data:text/html;base64,YWJj",
        "data:;base64,YWJj",
        "data:image/png;base64,YW Jj",
        "data:image/png;base64,YWJ",
        "data:image/png;base64,YWJ_",
        "data:image/png;base64,ÄÖÜß",
        "data:image/png;base64," + "=" * 8,
        "data:image/" + "x" * 200 + ";base64,YWJj",
    ],
)
async def test_any_other_url_is_refused_without_repeating_it(reader: RequestImages, url: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await reader.read(url, "messages[0].content[1].image_url")
    assert (raised.value.reason, raised.value.field) == ("BAD_IMAGE_URL", "messages[0].content[1].image_url")
    assert "passwd" not in raised.value.message


async def test_a_remote_url_needs_a_list_of_hosts(reader: RequestImages) -> None:
    for url in ("https://img.example.com/a.png", "HTTP://127.0.0.1/"):
        with pytest.raises(InvalidArgument) as raised:
            await reader.read(url, "f")
        assert raised.value.reason == "IMAGE_URLS_DISABLED"


def test_a_large_file_is_refused_before_it_is_decoded() -> None:
    for url in (data_url(b"x" * (LIMIT + 3)), "data:image/png;base64," + "!" * 2 * LIMIT):
        with pytest.raises(InvalidArgument) as raised:
            read_data_url(url, "f", max_bytes=LIMIT)
        assert raised.value.reason == "IMAGE_TOO_LARGE"
