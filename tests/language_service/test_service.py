"""Call the language service as a process, over gRPC."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.errors import Code, TandemError
from chassis.grpc_errors import from_rpc_error
from chassis.settings import load_settings
from checkpoint.initial import create_checkpoint
from checkpoint.manifest import read_manifest, tokenizer_digest
from gateway.settings import GatewaySettings
from language_service.service import LanguageSettings
from tandem.v1 import model_pb2, sampling_pb2
from tests.language_service.process import (
    BLOCK_BYTES,
    CONFIG,
    TAG,
    Request,
    Running,
    ask,
    image,
    refusal,
    running,
    start,
    text,
)

OTHER_TAG, SPARE_TAG = "tiny-v1.1.0", "tiny-v2.0.0"
NUM_BLOCKS = 256
ALWAYS_ENDS = {CONFIG.language.eos_token_ids[0]: 100.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, tag in enumerate((TAG, OTHER_TAG, SPARE_TAG)):
        create_checkpoint(root, tag, CONFIG, seed=seed)
    return root


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[Running]:
    flags = ("--kv-cache-bytes", str(NUM_BLOCKS * BLOCK_BYTES), "--segment-timeout-s", "2", "--max-images", "2")
    with running(models, "--tags", f"{TAG},{OTHER_TAG}", *flags) as process:
        yield process


def test_an_answer_streams_and_reports_usage_and_timings(service: Running) -> None:
    prompt = [start(max_tokens=6, num_logprobs=2), text(7, 8), image(service.vision_digest), text(9)]
    responses = list(service.stub.Generate(iter(prompt), timeout=10))
    assert [len(response.tokens.token_ids) for response in responses[1:-1]] == [1] * 6
    for response in responses[1:-1]:
        (logprobs,) = response.tokens.logprobs
        assert logprobs.chosen.token_id == logprobs.top[0].token_id == response.tokens.token_ids[0]
        assert len(logprobs.top) == 2
    finished = responses[-1].finished
    assert finished.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    assert finished.usage == sampling_pb2.Usage(prompt_tokens=35, visual_tokens=32, completion_tokens=6)
    assert finished.timings.prefill_ms > 0
    assert responses[0].prefilled.prefill_ms == finished.timings.prefill_ms
    assert finished.timings.first_token_ms > 0
    assert finished.timings.decode_ms > 0


def test_the_end_of_sequence_token_is_not_sent(service: Running) -> None:
    tokens, finished = ask(service, start(logit_bias=ALWAYS_ENDS, ignore_eos=False), text(7))
    assert tokens == []
    assert finished.finish_reason == sampling_pb2.FINISH_REASON_STOP
    assert finished.usage.completion_tokens == 0


def test_without_a_limit_the_answer_has_the_default_length_and_fits_the_context(service: Running) -> None:
    tokens, _ = ask(service, start(), text(7))
    assert len(tokens) == 256
    context = CONFIG.language.context_length
    tokens, finished = ask(service, start(), text(*[7] * (context - 3)))
    assert len(tokens) == 3
    assert finished.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    tokens, _ = ask(service, start(max_tokens=3), text(*[7] * (context - 3)))
    assert len(tokens) == 3


def test_the_image_and_the_model_change_the_answer(service: Running) -> None:
    def answer(seed: int, tag: str = TAG) -> list[int]:
        options = start(tag, max_tokens=20, temperature=1.0, seed=1)
        return ask(service, options, text(7), image(service.vision_digest, seed), text(9))[0]

    assert answer(0) == answer(0)
    assert answer(0) != answer(1)
    # The other model needs another vision half, so it refuses these visual tokens.
    error = refusal(service, [start(OTHER_TAG), text(7), image(service.vision_digest)])
    assert error.reason == "VISION_MISMATCH"


def test_a_model_describes_itself(service: Running, models: Path) -> None:
    model = service.stub.GetModel(model_pb2.GetModelRequest(tag=TAG)).model
    manifest = read_manifest(models / TAG)
    assert model.half_digest == manifest.language.digest
    assert (model.backend, model.device, model.precision) == ("torch", "cpu", "float32")
    assert model.num_weight_bytes == 4 * model.num_parameters
    language = model.language
    assert language.vision_digest == manifest.language.vision_digest
    assert language.tokenizer_digest == tokenizer_digest(models / TAG)
    assert (language.width, language.vocab_size, language.context_length) == (64, 264, 1024)
    assert (language.num_visual_tokens, language.max_images, language.max_running) == (32, 2, 64)
    assert language.num_levels == 1
    assert (language.num_blocks, language.block_size) == (NUM_BLOCKS, 16)
    assert language.num_cache_bytes == service.metric("tandem_language_kv_blocks") * 16 * 2 * 2 * 2 * 16 * 4


def test_cancelling_frees_everything_at_any_stage(service: Running) -> None:
    for stage in ("prompt", "answer"):
        left = threading.Event()

        def prompt(stage: str = stage, left: threading.Event = left) -> Iterator[Request]:
            yield start(max_tokens=700)
            yield text(7, 8, 9)
            while stage == "prompt" and not left.wait(0.1):
                yield text(7)

        call = service.stub.Generate(prompt(), timeout=20)
        if stage == "answer":
            next(call)
        while stage == "prompt" and service.metric("tandem_language_kv_blocks_used") == 0:
            time.sleep(0.01)
        call.cancel()
        left.set()
        service.until_idle()


def test_an_exceeded_deadline_frees_everything(service: Running) -> None:
    error = refusal(service, [start(max_tokens=1000), text(7)], timeout=0.2)
    assert error.code == Code.DEADLINE_EXCEEDED
    service.until_idle()


def test_an_image_may_take_until_the_gateways_longest_deadline() -> None:
    """Then the client's own deadline reports a slow encoder."""
    fields, deadlines = LanguageSettings.model_fields, GatewaySettings.model_fields
    assert fields["segment_timeout_s"].default >= deadlines["max_deadline_s"].default


def test_a_stalled_prompt_is_ended(service: Running) -> None:
    more = threading.Event()

    def prompt() -> Iterator[Request]:
        yield start()
        yield text(7)
        more.wait(20)

    with pytest.raises(grpc.RpcError) as caught:
        list(service.stub.Generate(prompt(), timeout=20))
    more.set()
    error = from_rpc_error(caught.value)
    assert (error.code.name, error.reason) == ("DEADLINE_EXCEEDED", "PROMPT_STALLED")
    service.until_idle()


def test_a_model_is_loaded_and_unloaded_while_others_serve(service: Running) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)

    def status(tag: str) -> int:
        name = f"tandem.v1.LanguageService/{tag}"
        return int(health.Check(health_pb2.HealthCheckRequest(service=name)).status)

    assert status(TAG) == status(OTHER_TAG) == health_pb2.HealthCheckResponse.SERVING
    service.stub.LoadModel(model_pb2.LoadModelRequest(tag=SPARE_TAG), timeout=30)
    assert len(ask(service, start(SPARE_TAG, max_tokens=3), text(7))[0]) == 3
    last = service.stub.Generate(iter([start(SPARE_TAG, max_tokens=300), text(7)]), timeout=20)
    next(last)
    service.stub.UnloadModel(model_pb2.UnloadModelRequest(tag=SPARE_TAG), timeout=30)
    assert [response.WhichOneof("event") for response in last][-1] == "finished"
    assert status(SPARE_TAG) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert refusal(service, [start(SPARE_TAG), text(7)]).reason == "UNKNOWN_TAG"


def test_overload_is_refused_at_once_and_shutdown_drains_running_requests(models: Path) -> None:
    with running(models, "--tags", TAG, "--max-running", "1", "--max-waiting", "1") as service:
        calls = [service.stub.Generate(iter([start(max_tokens=200), text(7)]), timeout=30) for _ in range(8)]
        outcomes = [_outcome(call) for call in calls[1:]]
        refused = [error for error in outcomes if error is not None]
        assert 0 < len(refused) < 8
        assert {(error.code.name, error.reason, error.retry_after_s) for error in refused} == {
            ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 1)
        }
        last = service.stub.Generate(iter([start(max_tokens=200), text(7)]), timeout=30)
        next(last)
        service.process.send_signal(signal.SIGTERM)
        assert [response.WhichOneof("event") for response in last][-1] == "finished"
        assert service.process.wait(timeout=10) == 0


def test_shutdown_waits_for_an_image_of_a_running_request(models: Path) -> None:
    """Meanwhile it refuses new requests."""
    send_image = threading.Event()
    with running(models, "--tags", TAG) as service:

        def prompt() -> Iterator[Request]:
            yield start(max_tokens=5)
            yield text(7, 8)
            send_image.wait(20)
            yield image(service.vision_digest)

        call = service.stub.Generate(prompt(), timeout=30)
        while service.metric("tandem_language_kv_blocks_used") == 0:
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        while (error := _outcome(service.stub.Generate(iter([start(max_tokens=1), text(7)]), timeout=10))) is None:
            time.sleep(0.01)
        assert error.code == Code.UNAVAILABLE
        send_image.set()
        assert list(call)[-1].finished.usage.visual_tokens == 32
        assert service.process.wait(timeout=10) == 0


def _outcome(call: Any) -> TandemError | None:
    try:
        list(call)
    except grpc.RpcError as rpc_error:
        return from_rpc_error(rpc_error)
    return None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-step-tokens", "64"), "--max-step-tokens"),
        (("--kv-cache-fraction", "2"), "--kv-cache-fraction"),
        (("--device", "cuda:99"), "GPUs here, so choose"),
        (("--device", "gpu"), "--device"),
        (("--precision", "int3"), "--precision"),
        (("--engine", "other"), "--engine"),
        (("--engine", "vllm", "--engine-args", '{"nnodes": "2"}'), "nnodes and node_rank"),
        (("--engine", "vllm", "--engine-args", '{"nnodes": 2}', "--tags", "a-v1.0.0,b-v1.0.0"), "exactly one tag"),
    ],
)
def test_a_bad_setting_stops_the_start_with_its_name(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(LanguageSettings, ["--models", ".", *flags])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("setting", "device"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_gpu_setting_may_omit_its_number(setting: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_settings(LanguageSettings, ["--models", ".", "--device", setting]).device == device
