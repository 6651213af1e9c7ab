"""Requests of the clients, without a server."""

import asyncio
import hashlib
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processing import load_upright, open_image_file
from tandem import AsyncClient, Client, Image, Message, assistant, system, user
from tandem.client.request import (
    CHUNK_BYTES,
    check_size,
    detokenize_request,
    generate_request,
    messages,
    put_image_requests,
)
from tandem.client.types import GenerateOptions
from tandem.errors import FailedPrecondition, InvalidArgument
from tandem.v1 import gateway_pb2, sampling_pb2

DIGEST = hashlib.sha256(b"image").hexdigest()
TURNS = st.builds(
    Message,
    st.sampled_from(("system", "user", "assistant")),
    st.lists(st.text(st.characters(codec="utf-8")) | st.builds(Image, st.binary() | st.just(DIGEST)), min_size=1).map(
        tuple
    ),
)


@given(st.lists(TURNS))
def test_a_conversation_is_sent_complete_and_in_order(turns: list[Message]) -> None:
    """Reads roles, text and images back, by separate code."""
    sent = [gateway_pb2.Message.FromString(turn.SerializeToString()) for turn in messages(turns, ())]
    for message, turn in zip(sent, turns, strict=True):
        assert gateway_pb2.Role.Name(message.role) == f"ROLE_{turn.role.upper()}"
        for part, given_part in zip(message.parts, turn.parts, strict=True):
            if isinstance(given_part, str):
                assert part.text == given_part
            elif given_part.source == DIGEST:
                assert part.image.sha256.hex() == DIGEST
            else:
                assert part.image.data == given_part.source


def test_instructions_come_before_images_and_images_before_the_question() -> None:
    sent = messages("What?", [b"one", Image(DIGEST)], "Be brief.")
    assert [gateway_pb2.Role.Name(message.role) for message in sent] == ["ROLE_SYSTEM", "ROLE_USER"]
    assert [part.WhichOneof("content") for part in sent[1].parts] == ["image", "image", "text"]


def test_images_are_read_from_paths_and_strings(image_files: tuple[Path, Path]) -> None:
    [message] = messages("?", [image_files[0], str(image_files[1])])
    assert [part.image.data for part in message.parts[:2]] == [path.read_bytes() for path in image_files]


@pytest.mark.parametrize("image", [b"one", bytearray(b"one"), memoryview(b"one"), Image(b"one"), [b"one"], (b"one",)])
def test_one_image_may_stand_alone(image: Any) -> None:
    [message] = messages("?", image)
    assert [part.image.data for part in message.parts] == [b"one", b""]


def test_a_path_alone_is_one_image(image_files: tuple[Path, Path]) -> None:
    """A string is a sequence, but not of paths."""
    for image in (image_files[0], str(image_files[0])):
        [message] = messages("?", image)
        assert message.parts[0].image.data == image_files[0].read_bytes()
    assert len(messages("?", DIGEST)[0].parts[0].image.sha256) == 32
    assert len(messages("?", None)[0].parts) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16"])
def test_a_pillow_image_is_sent_as_it_looks(mode: str) -> None:
    grey = PIL.Image.linear_gradient("L")
    image = (
        PIL.Image.fromarray(np.asarray(grey, np.uint16) << 8) if mode == "I;16" else grey.convert("RGB").convert(mode)
    )
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    for images in (image, [Image(image)]):
        [message] = messages("?", images)
        with open_image_file(message.parts[0].image.data) as sent:
            difference = np.abs(np.asarray(load_upright(sent), np.int16) - np.asarray(load_upright(image), np.int16))
            assert difference.max() <= 1
    assert put_image_requests(image)


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3), np.uint8), 5, object(), [None], io.BytesIO(b"x")])
def test_a_value_that_is_no_image_is_named(wrong: Any) -> None:
    for prompt, images in ([user(Image(wrong), "?")], ()), ("?", [wrong]):
        with pytest.raises(TypeError, match="an image is a path, the bytes of a file or a Pillow image, not "):
            messages(prompt, images)


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": "Hi"}], ["Hi"], [Message("tool", ("x",))]])  # type: ignore[arg-type]
def test_a_value_that_is_no_message_is_named(prompt: Any) -> None:
    with pytest.raises(TypeError, match=r"such as user\(\.\.\.\) returns"):
        messages(prompt)


def test_one_message_may_stand_alone() -> None:
    assert messages(user("Hi")) == messages([user("Hi")])  # type: ignore[arg-type]
    assert messages(Message("user", "Hi")) == messages([user("Hi")])  # type: ignore[arg-type]


def test_a_missing_image_raises_the_file_s_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        generate_request("?", [tmp_path / "nothing.png"], {})
    with pytest.raises(FileNotFoundError):  # at once, not inside gRPC's iterator
        put_image_requests(tmp_path / "nothing.png")


def test_images_outside_a_conversation_are_refused() -> None:
    """Their turn would be unknown."""
    with pytest.raises(TypeError, match="messages"):
        messages([user("Hi"), assistant("Hello"), user("What?")], [b"image"])
    with pytest.raises(TypeError, match="messages"):
        messages([system("Be brief."), user("What?")], (), "Be long.")


def test_options_set_the_field_of_their_name() -> None:
    options = GenerateOptions(max_tokens=5, top_p=0.5, logit_bias={3: -1.5}, seed=0, stop="END", routing_key="me")
    request = generate_request("?", (), options)
    expected = sampling_pb2.SamplingOptions(max_tokens=5, top_p=0.5, logit_bias={3: -1.5}, seed=0)
    assert (request.sampling, list(request.stop), request.routing_key) == (expected, ["END"], "me")
    assert request.sampling.HasField("seed")  # 0 is a seed


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match=r"max_token$"):
        generate_request("?", (), {"max_token": 5})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (GenerateOptions(request_id="a b"), "BAD_REQUEST_ID"),  # the gateway would replace it
        (GenerateOptions(request_id="x" * 129), "BAD_REQUEST_ID"),
        (GenerateOptions(request_id="é"), "BAD_REQUEST_ID"),  # gRPC refuses such metadata
        (GenerateOptions(release="ü-v1.0.0"), "BAD_TAG"),
        (GenerateOptions(release="\udcff"), "BAD_TAG"),
    ],
)
def test_metadata_that_would_not_arrive_unchanged_is_refused(options: GenerateOptions, reason: str) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidArgument) as caught:
        client.generate("?", **options)
    assert caught.value.reason == reason


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 7])
def test_chunks_join_to_the_image(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    chunks = [request.chunk for request in put_image_requests(data)]
    assert b"".join(chunks) == data
    assert all(1 <= len(chunk) <= CHUNK_BYTES for chunk in chunks)


def test_one_choice_may_be_a_text() -> None:
    assert list(generate_request("?", (), {"choices": "yes"}).sampling.choices.texts) == ["yes"]
    assert list(generate_request("?", (), {"choices": ("yes", "no")}).sampling.choices.texts) == ["yes", "no"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1},
        {"max_tokens": 2**40},
        {"max_tokens": "5"},
        {"max_tokens": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"temperature": "hot"},
        {"stop_token_ids": [-1]},
        {"stop_token_ids": 5},
        {"logit_bias": {-1: 1}},
        {"logit_bias": [1]},
        {"choices": 5},
        {"choices": [1]},
        {"json_schema": 5},
        {"regex": b"\xff"},
        {"ignore_eos": "yes"},
        {"continue_answer": "yes"},
        {"stop": 5},
        {"stop": [1]},
        {"routing_key": 5},
        {"system": 5},
        {"request_id": 5},
        {"release": 5},
        {"timeout_s": -1},
        {"timeout_s": 0},
        {"timeout_s": math.nan},
        {"timeout_s": "5"},
    ],
    ids=repr,
)
def test_a_bad_option_is_named_in_one_sentence(options: Any) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidArgument) as caught:
        client.generate("?", **options)
    [name] = options
    assert name in caught.value.message
    assert caught.value.message.endswith(".")
    assert ". " not in caught.value.message
    assert "protobuf" not in caught.value.message.lower()


def test_none_is_the_default_of_every_option() -> None:
    request = generate_request("?", (), dict.fromkeys(GenerateOptions.__annotations__))  # type: ignore[arg-type]
    assert request == generate_request("?", (), {})


def test_negative_token_ids_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="token_ids cannot be"):
        detokenize_request([3, -1])


def test_a_request_that_no_gateway_receives_is_not_sent() -> None:
    """GRPC would send it all, and fail without a field."""
    images = [bytes(17 * 2**20), bytes(18 * 2**20)]
    with Client("127.0.0.1:1") as client:

        def tokenize(prompt: str, images: list[bytes]) -> object:
            return client.tokenize([user(*map(Image, images), prompt)])

        for call in (client.ask, client.count_tokens, tokenize):
            with pytest.raises(InvalidArgument, match="upload its images with put_image") as caught:
                call("Which is larger?", images=images)
            assert (caught.value.reason, caught.value.field) == ("REQUEST_TOO_LARGE", "messages[0].parts[1].image")
    request = generate_request("Which is larger?", images, {})
    check_size(request, request.ByteSize())
    with pytest.raises(InvalidArgument):
        check_size(request, request.ByteSize() - 1)


@pytest.mark.parametrize("address", ["http://127.0.0.1:50050", "127.0.0.1", "", "a" * 64 + ":1"])
def test_a_bad_address_is_refused(address: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgument, match="The address must be host:port") as caught:
            kind(address)
        assert caught.value.reason == "BAD_ADDRESS"


def test_an_async_client_works_in_one_loop_only() -> None:
    client = AsyncClient("127.0.0.1:1", timeout_s=1)
    with pytest.raises(FailedPrecondition, match="in a coroutine") as caught:
        client.generate("?")
    assert caught.value.reason == "NO_LOOP"

    async def call() -> str:
        try:
            await client.models()
        except Exception as error:
            return getattr(error, "reason", repr(error))
        return ""

    assert asyncio.run(call()) in ("UNREACHABLE", "DEADLINE_EXCEEDED")
    assert asyncio.run(call()) == "OTHER_LOOP"
    unused = AsyncClient("127.0.0.1:1")
    asyncio.run(unused.close())
    with pytest.raises(FailedPrecondition, match="closed"):
        asyncio.run(unused.models())


def test_a_client_checks_its_tls_files_at_once(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for kind in (Client, AsyncClient):
        with pytest.raises(FailedPrecondition) as caught:
            kind(ca=tmp_path / "ca.pem")
        assert caught.value.reason == "BAD_TLS"


def test_the_client_starts_without_torch() -> None:
    """Checked in a fresh interpreter."""
    program = "import sys, tandem, tandem.commands; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_schema_is_sent_in_utf8_without_spaces() -> None:
    """Its size is limited as sent. Escapes would double it."""
    schema = {"properties": {"颜色": {"enum": ["红" * 15_000, "绿"]}}}
    text = generate_request("?", (), {"json_schema": schema}).sampling.json_schema
    assert text == '{"properties":{"颜色":{"enum":["' + "红" * 15_000 + '","绿"]}}}'
    assert len(text.encode()) < 46_000
