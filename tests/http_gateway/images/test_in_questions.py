"""Questions about remote images, through all services."""

import asyncio
import hashlib
import io

import pytest
from PIL import Image
from pydantic import ValidationError

from http_gateway.door import HttpSettings
from tandem.stack import Stack
from tests.http_gateway.doors import running_door
from tests.http_gateway.images.remote_host import answer, running


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 30), "purple").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("networks", [("127.0.0.0/8",), ()])
async def test_an_image_of_a_listed_host_is_asked_about(stack: Stack, networks: tuple[str, ...]) -> None:
    """Unless it is in a private network."""
    async with running() as host:
        host.answers["/a.png"] = answer(png())
        url = f"http://127.0.0.1:{host.port}"
        async with running_door(stack.address, image_hosts=(url,), image_networks=networks) as door:
            content = [{"type": "image_url", "image_url": {"url": f"{url}/a.png"}}, {"type": "text", "text": "What?"}]
            response = await door.chat(content, max_tokens=2)
    if networks:
        (image,) = response.json()["tandem"]["images"]
        assert image["sha256"] == hashlib.sha256(png()).hexdigest()
    else:
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "IMAGE_HOST_FORBIDDEN")
        assert error["param"] == "messages[0].content[0].image_url"
        assert not host.requests


async def test_a_client_that_leaves_ends_the_fetch(stack: Stack) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def answer_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()  # until the door closes the connection
        left.set()
        raise ConnectionError

    async with running() as host:
        host.handlers["/a.png"] = answer_nothing
        url = f"http://127.0.0.1:{host.port}"
        settings = {"image_hosts": (url,), "image_networks": ("127.0.0.0/8",), "image_timeout_s": 600}
        async with running_door(stack.address, **settings) as door, asyncio.timeout(20):
            content = [{"type": "image_url", "image_url": {"url": f"{url}/a.png"}}, {"type": "text", "text": "What?"}]
            asking = asyncio.create_task(door.chat(content))
            await asked.wait()
            asking.cancel()
            await left.wait()


@pytest.mark.parametrize(
    ("field", "value"), [("image_hosts", "https://a/b"), ("image_networks", "10.0.0.1/8"), ("image_networks", "a")]
)
def test_bad_lists_stop_the_start(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=r"must be (hosts|networks)"):
        HttpSettings(**{field: (value,)})  # type: ignore[arg-type]
