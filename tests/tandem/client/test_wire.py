"""Messages of the clients, without a server."""

import hashlib
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem import Client, Image, Message, assistant, system, user
from tandem.client import wire
from tandem.client.types import GenerateOptions
from tandem.errors import Internal, InvalidArgument
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
    sent = [gateway_pb2.Message.FromString(turn.SerializeToString()) for turn in wire.messages(turns, ())]
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
    messages = wire.messages("What?", [b"one", Image(DIGEST)], "Be brief.")
    assert [gateway_pb2.Role.Name(message.role) for message in messages] == ["ROLE_SYSTEM", "ROLE_USER"]
    assert [part.WhichOneof("content") for part in messages[1].parts] == ["image", "image", "text"]


def test_images_are_read_from_paths_and_strings(image_files: tuple[Path, Path]) -> None:
    [message] = wire.messages("?", [image_files[0], str(image_files[1])])
    assert [part.image.data for part in message.parts[:2]] == [path.read_bytes() for path in image_files]


def test_decoded_images_are_not_sent() -> None:
    with pytest.raises(TypeError, match="the path or the bytes"):
        wire.messages([user(Image(PIL.Image.new("RGB", (8, 8))), "?")], ())


def test_a_missing_image_raises_the_file_s_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        wire.generate_request("?", [tmp_path / "nothing.png"], {})
    with pytest.raises(FileNotFoundError):  # at once, not inside gRPC's iterator
        wire.put_image_requests(tmp_path / "nothing.png")


def test_images_outside_a_conversation_are_refused() -> None:
    """Their turn would be unknown."""
    with pytest.raises(TypeError, match="messages"):
        wire.messages([user("Hi"), assistant("Hello"), user("What?")], [b"image"])
    with pytest.raises(TypeError, match="messages"):
        wire.messages([system("Be brief."), user("What?")], (), "Be long.")


def test_options_set_the_field_of_their_name() -> None:
    options = GenerateOptions(max_tokens=5, top_p=0.5, logit_bias={3: -1.5}, seed=0, stop="END", routing_key="me")
    request = wire.generate_request("?", (), options)
    expected = sampling_pb2.SamplingOptions(max_tokens=5, top_p=0.5, logit_bias={3: -1.5}, seed=0)
    assert (request.sampling, list(request.stop), request.routing_key) == (expected, ["END"], "me")
    assert request.sampling.HasField("seed")  # 0 is a seed


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match=r"max_token$"):
        wire.generate_request("?", (), {"max_token": 5})  # type: ignore[typeddict-unknown-key]


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


@pytest.mark.parametrize("size", [1, wire.CHUNK_BYTES, wire.CHUNK_BYTES + 1, 2 * wire.CHUNK_BYTES + 7])
def test_chunks_join_to_the_image(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    chunks = [request.chunk for request in wire.put_image_requests(data)]
    assert b"".join(chunks) == data
    assert all(1 <= len(chunk) <= wire.CHUNK_BYTES for chunk in chunks)


def test_a_stream_without_its_last_message_is_an_error() -> None:
    builder = wire.AnswerBuilder("r1")
    builder.add(gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text="half an ans")))
    with pytest.raises(Internal) as caught:
        builder.check_complete()
    assert caught.value.request_id == "r1"


@pytest.mark.parametrize("name", gateway_pb2.CacheLevel.keys())
def test_the_image_report_reaches_the_user(name: str) -> None:
    level = name.removeprefix("CACHE_LEVEL_").lower()
    sent = gateway_pb2.ImageReport(
        sha256=bytes(32),
        cache_level=gateway_pb2.CacheLevel.Value(name),
        num_visual_tokens=32,
        ready_ms=1.5,
        similar_sha256=b"s" * 32,
        similarity=0.5,
    )
    finished = gateway_pb2.GatewayGenerateFinished(images=[sent])
    builder = wire.AnswerBuilder("r1")
    builder.add(gateway_pb2.GatewayGenerateResponse(finished=finished))
    [image] = builder.final.images
    assert (image.sha256, image.cache_level, image.num_visual_tokens) == ("00" * 32, level, 32)
    assert (image.ready_ms, image.similar_sha256, image.similarity) == (1.5, "73" * 32, 0.5)
    assert image.cached == (level != "miss")


def test_the_client_starts_without_torch() -> None:
    """Checked in a fresh interpreter."""
    program = "import sys, tandem, tandem.commands; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
