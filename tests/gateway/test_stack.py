"""The three real processes together, on a tiny random checkpoint."""

import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer

from chassis.errors import TandemError
from chassis.grpc_errors import from_rpc_error
from chassis.server import Server
from gateway.service import open_service
from gateway.settings import GatewaySettings
from tandem.stack.stack import Stack
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, sampling_pb2
from tests.gateway.halves import TAG
from tests.gateway.scripted import ask, read

MakeImage = Callable[[int], bytes]

GREEDY = sampling_pb2.SamplingOptions(max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def channel(stack: Stack) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(stack.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> gateway_pb2_grpc.GatewayStub:
    return gateway_pb2_grpc.GatewayStub(channel)


def text_of(responses: list[gateway_pb2.GatewayGenerateResponse]) -> str:
    return "".join(response.delta.text for response in responses[:-1])


def metrics_of(stack: Stack, service: str, prefix: str) -> dict[str, float]:
    """Return a service's metrics whose names begin with `prefix`."""
    with urllib.request.urlopen(stack.metrics_url(service)) as page:
        lines = page.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefix)}


def test_a_question_about_an_image_is_answered_and_the_next_is_a_cache_hit(
    stub: gateway_pb2_grpc.GatewayStub, make_image: MakeImage
) -> None:
    answers = [list(stub.Generate(ask(make_image(1), "这是什么？", sampling=GREEDY))) for _ in range(2)]
    finished = [responses[-1].finished for responses in answers]
    assert text_of(answers[0]) == text_of(answers[1])
    assert [one.images[0].cache_level for one in finished] == [
        gateway_pb2.CACHE_LEVEL_MISS,
        gateway_pb2.CACHE_LEVEL_GATEWAY,
    ]
    for one in finished:
        assert one.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
        assert (one.usage.completion_tokens, one.usage.visual_tokens) == (24, 32)
        assert one.release == gateway_pb2.Release(vision_tag=TAG, language_tag=TAG)


def test_streamed_text_equals_all_tokens_decoded_at_once(
    stub: gateway_pb2_grpc.GatewayStub, tokenizer: Tokenizer
) -> None:
    """Random bytes combine incomplete characters and invalid bytes."""
    for seed in range(5):
        sampling = sampling_pb2.SamplingOptions(
            max_tokens=100, ignore_eos=True, temperature=1.5, seed=seed, num_logprobs=0
        )
        responses = list(stub.Generate(ask("Speak.", sampling=sampling)))
        token_ids = [entry.chosen.token_id for response in responses[:-1] for entry in response.delta.logprobs]
        known = [token_id for token_id in token_ids if token_id < tokenizer.get_vocab_size()]
        assert len(token_ids) == responses[-1].finished.usage.completion_tokens == 100
        assert text_of(responses) == tokenizer.decode(known, skip_special_tokens=True)


def test_a_stop_string_cuts_a_real_answer_before_it(stub: gateway_pb2_grpc.GatewayStub) -> None:
    sampling = sampling_pb2.SamplingOptions(max_tokens=100, ignore_eos=True, temperature=1.5, seed=3)
    whole = text_of(list(stub.Generate(ask("Speak.", sampling=sampling))))
    stop = whole[40:43]
    responses = list(stub.Generate(ask("Speak.", sampling=sampling, stop=[stop])))
    assert text_of(responses) == whole[: whole.index(stop)]
    assert responses[-1].finished.finish_reason == sampling_pb2.FINISH_REASON_STOP


def test_counted_tokens_equal_the_usage_of_the_decoder(
    stub: gateway_pb2_grpc.GatewayStub, make_image: MakeImage
) -> None:
    request = ask(make_image(2), "What is it?", sampling=GREEDY)
    counted = stub.CountTokens(gateway_pb2.CountTokensRequest(messages=request.messages))
    usage = list(stub.Generate(request))[-1].finished.usage
    assert (counted.prompt_tokens, counted.visual_tokens) == (usage.prompt_tokens, usage.visual_tokens)


def test_cancelled_calls_release_all_resources(
    stack: Stack, stub: gateway_pb2_grpc.GatewayStub, make_image: MakeImage
) -> None:
    list(stub.Generate(ask("Warm up.", sampling=GREEDY)))
    baseline = metrics_of(stack, "language", "tandem_language_kv_blocks_used")
    long = sampling_pb2.SamplingOptions(max_tokens=900, ignore_eos=True)
    for number in range(10):
        call: Any = stub.Generate(ask(make_image(100 + number), "Go on.", sampling=long))
        if number % 2:
            next(call)  # cancelled during the answer. The others are cancelled during the prompt
        call.cancel()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        running = metrics_of(stack, "language", "tandem_language_running") | metrics_of(
            stack, "gateway", "tandem_gateway_run"
        )
        if not any(running.values()) and metrics_of(stack, "language", "tandem_language_kv_blocks_used") == baseline:
            return
        time.sleep(0.05)
    pytest.fail(f"not released: {running}")


async def test_a_new_gateway_gets_cached_visual_tokens_from_the_vision_service(
    stack: Stack, store: Path, make_image: MakeImage
) -> None:
    """It asks by digest, without sending the image again."""
    with grpc.insecure_channel(stack.address) as channel:
        first = list(
            gateway_pb2_grpc.GatewayStub(channel).Generate(ask(make_image(77), "What is it?", sampling=GREEDY))
        )
    fields: dict[str, Any] = {
        "vision": (stack.address_of("vision"),),
        "language": (stack.address_of("language"),),
        "digest_first_bytes": 0,
    }
    settings = GatewaySettings(listen="127.0.0.1:0", models=store, release=TAG, **fields)
    server = Server(settings)
    async with open_service(settings, server):
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub: Any = gateway_pb2_grpc.GatewayStub(channel)
            second = await read(stub.Generate(ask(make_image(77), "What is it?", sampling=GREEDY)))
        await server.stop(0)
    assert second.finished.images[0].cache_level == gateway_pb2.CACHE_LEVEL_VISION
    assert second.text == text_of(first)


def png(width: int, height: int) -> bytes:
    """Return a small PNG file whose header claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * min(10_000, (1 + 3 * width) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bad_requests(image: bytes) -> dict[str, tuple[gateway_pb2.GatewayGenerateRequest, str, str]]:
    """Return bad requests by name, with expected status and reason."""
    invalid = "INVALID_ARGUMENT"
    warm = sampling_pb2.SamplingOptions(temperature=-1)
    long = sampling_pb2.SamplingOptions(max_tokens=2000)
    unknown = ask("What is it?")
    unknown.messages[0].parts.add(image=gateway_pb2.Image(sha256=bytes(32)))
    return {
        "unsupported image": (ask(b"%PDF-1.7 not an image", "What?"), invalid, "IMAGE_UNSUPPORTED"),
        "truncated image": (ask(image[: len(image) // 2], "What?"), invalid, "IMAGE_TRUNCATED"),
        "1x1 image": (ask(png(1, 1), "What?"), invalid, "IMAGE_TOO_SMALL"),
        "30,000 x 30,000 pixels": (ask(png(30_000, 30_000), "What?"), invalid, "IMAGE_TOO_MANY_PIXELS"),
        "25 MB of bytes": (ask(bytes(25_000_000), "What?"), invalid, "IMAGE_TOO_LARGE"),
        "0 bytes": (ask(b"", "What?"), invalid, "IMAGE_EMPTY"),
        "an unknown digest": (unknown, "NOT_FOUND", "IMAGE_NOT_FOUND"),
        "empty question": (ask(image, "  "), invalid, "EMPTY_QUESTION"),
        "too many images": (ask(*[image] * 9, "Which?"), invalid, "TOO_MANY_IMAGES"),
        "a prompt longer than the context": (ask("word " * 400), invalid, "PROMPT_TOO_LONG"),
        "an answer longer than the context": (ask("Hi.", sampling=long), invalid, "PROMPT_TOO_LONG"),
        "too much text": (ask("word " * 100_000), invalid, "TEXT_TOO_LONG"),
        "a temperature below 0": (ask("Hi.", sampling=warm), invalid, "BAD_SAMPLING"),
    }


@pytest.mark.parametrize("case", list(bad_requests(b"")))
def test_bad_input_is_refused_at_once_with_a_typed_error_and_the_next_request_works(
    case: str, stub: gateway_pb2_grpc.GatewayStub, make_image: MakeImage
) -> None:
    request, code, reason = bad_requests(make_image(3))[case]
    started = time.monotonic()
    error = error_of(lambda: list(stub.Generate(request)))
    assert (error.code.name, error.reason) == (code, reason)
    assert time.monotonic() - started < 10  # not the deadline of two minutes
    assert list(stub.Generate(ask("Hi.", sampling=GREEDY)))[-1].finished.usage.completion_tokens == 24


def test_text_that_is_not_utf8_is_an_invalid_argument(
    channel: grpc.Channel, stub: gateway_pb2_grpc.GatewayStub
) -> None:
    """Clients in other languages than Python can send such text."""
    request = ask("MARK").SerializeToString().replace(b"MARK", b"\xff\xfe\xff\xfe")
    generate = channel.unary_stream("/tandem.v1.Gateway/Generate", _unchanged, _unchanged)
    error = error_of(lambda: list(generate(request)))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "BAD_MESSAGE")
    list(stub.Generate(ask("Hi.", sampling=GREEDY)))


def _unchanged(message: bytes) -> bytes:
    return message


def error_of(call: Callable[[], object]) -> TandemError:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return from_rpc_error(raised.value)


def test_a_gateway_without_its_release_stops_with_the_reason(store: Path) -> None:
    flags = ["--models", str(store), "--release", "other-v1.0.0", "--listen", "127.0.0.1:0"]
    ended = subprocess.run([sys.executable, "-m", "gateway", *flags], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "has no other-v1.0.0; it has tiny-v1.0.0" in ended.stderr
    assert f"({store})." in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_gateway_needs_no_torch() -> None:
    """Its container has no torch, and it starts fast."""
    program = "import sys, gateway.service, gateway.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
