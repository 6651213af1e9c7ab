"""Uploads of images."""

import hashlib
import io

import pytest
from PIL import Image

from tests.http_gateway.conftest import OpenDoor
from tests.http_gateway.doors import RunningDoor, exchange


def png(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number, 90, 200)).save(file, "PNG")
    return file.getvalue()


async def test_an_uploaded_image_answers_by_its_id(door: RunningDoor) -> None:
    data = png(1)
    response = await door.client.post("/v1/files", files={"file": ("a.png", data)}, data={"purpose": "vision"})
    stored = response.json()
    assert response.status_code == 200, stored
    assert stored["id"] == hashlib.sha256(data).hexdigest()
    assert (stored["object"], stored["bytes"], stored["filename"]) == ("file", len(data), "a.png")
    answer = await door.chat(
        [{"type": "image_url", "image_url": {"url": f"tandem:{stored['id']}"}}, {"type": "text", "text": "What?"}],
        max_tokens=4,
    )
    assert answer.json()["tandem"]["images"][0]["sha256"] == stored["id"]


async def test_an_image_of_several_chunks_arrives_complete(door: RunningDoor) -> None:
    file = io.BytesIO()
    Image.effect_noise((1500, 1500), 80).save(file, "PNG")
    data = file.getvalue()
    assert len(data) > 2 * 2**20
    response = await door.client.post("/v1/files", files={"file": ("noise.png", data)})
    assert response.json()["id"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("files", "data", "code", "param"),
    [
        ({"other": ("a.png", b"x")}, {}, "MISSING_FIELD", "file"),
        ({}, {"file": "text"}, "NOT_MULTIPART", None),
        ({"other": ("a.png", b"x")}, {"file": "text"}, "MISSING_FIELD", "file"),
        ({"file": ("a.png", b"x")}, {"purpose": "fine-tune"}, "BAD_FIELD", "purpose"),
        ({"file": ("a.png", b"")}, {}, "IMAGE_EMPTY", "file"),
        ({"file": ("a.png", b"x")}, {"purpose": "v" * 5000}, "BAD_FIELD", "purpose"),
        ({"file": ("a.png", b"x")}, {f"field{number}": "x" for number in range(8)}, "BAD_FORM", None),
    ],
)
async def test_a_bad_form_is_refused(
    door: RunningDoor, files: dict[str, tuple[str, bytes]], data: dict[str, str], code: str, param: str | None
) -> None:
    response = await door.client.post("/v1/files", files=files, data=data)
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert response.status_code in (400, 415)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=" + "x" * 5000,
        "multipart/form-data; boundary=x; charset=utf-99",
        "multipart/form-data; boundary=\xff",
    ],
)
async def test_a_broken_form_is_no_error_of_the_server(door: RunningDoor, content_type: str) -> None:
    for body in (b"", b"--x\r\n\r\nabc", b"--x\r\ncontent-disposition: form-data\r\n\r\nabc\r\n--x--", b"\xff" * 100):
        response = await door.client.post(
            "/v1/files", content=body, headers={b"content-type": content_type.encode("latin-1")}
        )
        assert response.status_code == 400, response.text


async def test_large_files_are_refused_by_both_limits(open_door: OpenDoor) -> None:
    door = await open_door(max_image_bytes=1000, max_body_bytes=3000)
    for size, code in ((1001, "IMAGE_TOO_LARGE"), (4000, "BODY_TOO_LARGE")):
        response = await door.client.post("/v1/files", files={"file": ("a.png", b"x" * size)})
        assert (response.status_code, response.json()["error"]["code"]) == (413, code)


async def test_a_page_of_another_origin_may_not_upload(door: RunningDoor, open_door: OpenDoor) -> None:
    """Browsers send forms to any origin without asking it."""
    files = {"file": ("a.png", png(2))}
    own = f"http://127.0.0.1:{door.port}"
    for origin, status in (("https://evil.example", 403), ("null", 403), (own, 200)):
        response = await door.client.post("/v1/files", files=files, headers={"origin": origin})
        assert response.status_code == status, response.text
    trusting = await open_door(cors_origins=("https://chat.example",))
    response = await trusting.client.post("/v1/files", files=files, headers={"origin": "https://chat.example"})
    assert response.json()["error"]["code"] != "FOREIGN_ORIGIN"


async def test_an_upload_that_stalls_is_given_up(open_door: OpenDoor) -> None:
    door = await open_door(body_timeout_s=0.3)
    head = b"POST /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    reply = await exchange(door.port, head + b"content-length: 1000\r\n\r\n--x\r\n")
    assert reply.startswith(b"HTTP/1.1 408")
