"""The vision service as a process, called over gRPC."""

import hashlib
import io
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from chassis.grpc_errors import from_rpc_error
from chassis.tensors import check_tensor
from checkpoint.identity import visual_key
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from tandem.v1 import model_pb2, vision_pb2, vision_pb2_grpc
from tests.vision_service.process import TAG, Running, encode, fresh, request, running, values

OTHER_TAG, SPARE_TAG = "tiny-v1.1.0", "tiny-v2.0.0"
START_S = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, tag in enumerate((TAG, OTHER_TAG, SPARE_TAG)):
        create_checkpoint(root, tag, RESAMPLER_PRESETS["tiny"], seed=seed)
    return root


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[Running]:
    flags = ("--tags", f"{TAG},{OTHER_TAG}", "--max-batch-size", "4", "--max-wait-ms", "30", "--reuse-similar")
    with running(models, *flags) as process:
        yield process


def png(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_encode_returns_tokens_key_and_timings(service: Running) -> None:
    image = png()
    response = encode(service.stub, request(image, cache_salt=b"tenant"), timeout=10)
    model = service.stub.GetModel(model_pb2.GetModelRequest(tag=TAG)).model
    check_tensor(response.visual_tokens.embeddings, shape=(32, 64), field="embeddings")
    assert response.visual_tokens.vision_digest == model.half_digest
    assert response.visual_tokens.visual_key == visual_key(
        encoder_id=model.vision.encoder_id, cache_salt=b"tenant", image_sha256=hashlib.sha256(image).digest()
    )
    assert response.timings.decode_ms > 0
    assert response.timings.forward_ms > 0
    assert response.timings.batch_size == 1


def test_an_image_is_sent_and_encoded_once_and_then_found_by_digest(service: Running) -> None:
    image, salt = png("plum"), os.urandom(8)
    by_digest = request(image, cache_salt=salt)
    by_digest.ClearField("image")
    with pytest.raises(grpc.RpcError) as caught:
        encode(service.stub, by_digest, timeout=10)
    assert from_rpc_error(caught.value).reason == "IMAGE_NOT_CACHED"
    first = encode(service.stub, request(image, cache_salt=salt), timeout=10)
    again = encode(service.stub, by_digest, timeout=10)
    assert (first.source, again.source) == (vision_pb2.ENCODE_SOURCE_ENCODED, vision_pb2.ENCODE_SOURCE_CACHED)
    assert again.visual_tokens == first.visual_tokens
    assert again.timings == vision_pb2.EncodeTimings()


def test_another_file_of_the_same_photo_gets_the_same_tokens(service: Running) -> None:
    files, salt = [io.BytesIO(), io.BytesIO()], os.urandom(8)
    photo = Image.radial_gradient("L").convert("RGB")
    photo.save(files[0], "PNG")
    photo.save(files[1], "JPEG", quality=70)
    asks = [request(file.getvalue(), cache_salt=salt) for file in files]
    first, copy = (encode(service.stub, ask, timeout=10) for ask in asks)
    assert copy.visual_tokens == first.visual_tokens  # including the key, because equal keys mean equal embeddings
    assert (copy.source, first.source) == (vision_pb2.ENCODE_SOURCE_SIMILAR, vision_pb2.ENCODE_SOURCE_ENCODED)
    assert copy.similar.image_sha256 == asks[0].image_sha256
    assert 0.95 <= copy.similar.similarity <= 1
    assert not first.HasField("similar")


def test_requests_of_several_connections_share_one_encoding(service: Running) -> None:
    """Several gateways may request one image at the same moment."""
    ask, metric = request(png("teal"), cache_salt=os.urandom(8)), f'tandem_vision_batch_size_sum{{tag="{TAG}"}}'
    before = read_metric(service, metric)
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(service.address)) for _ in range(8)]
        calls = [vision_pb2_grpc.VisionServiceStub(channel).Encode(ask, timeout=10) for channel in channels]
        responses = [response for call in calls for response in call]
    assert len({response.visual_tokens.SerializeToString(deterministic=True) for response in responses}) == 1
    assert [response.source for response in responses].count(vision_pb2.ENCODE_SOURCE_ENCODED) == 1
    assert read_metric(service, metric) == before + 1


def test_concurrent_calls_share_a_batch_and_each_gets_its_own_answer(service: Running) -> None:
    images = [png(colour) for colour in ("red", "green", "blue", "white")]
    alone = [values(encode(service.stub, fresh(image), timeout=10)) for image in images]
    for _ in range(20):  # on a busy machine calls may arrive too late for one batch
        calls = [service.stub.Encode(fresh(image), timeout=10) for image in images]
        together = [response for call in calls for response in call]
        if max(response.timings.batch_size for response in together) > 1:
            break
    assert max(response.timings.batch_size for response in together) > 1
    for one, response in zip(alone, together, strict=True):
        np.testing.assert_allclose(values(response), one, atol=0.01 * np.abs(one).max())


def test_models_of_one_process_give_their_own_answers(service: Running) -> None:
    image = png()
    one, other = (encode(service.stub, request(image, tag=tag), timeout=10).visual_tokens for tag in (TAG, OTHER_TAG))
    assert one.embeddings.data != other.embeddings.data
    assert one.visual_key != other.visual_key
    infos = service.stub.ListModels(model_pb2.ListModelsRequest()).models
    assert [info.tag for info in infos] == [TAG, OTHER_TAG]
    assert {info.state for info in infos} == {model_pb2.MODEL_STATE_READY}


def test_a_model_is_loaded_and_unloaded_while_others_serve(service: Running) -> None:
    health = health_pb2_grpc.HealthStub(service.channel)

    def status(name: str) -> int:
        return int(health.Check(health_pb2.HealthCheckRequest(service=name)).status)

    name = "tandem.v1.VisionService"
    assert status(name) == status(f"{name}/{TAG}") == health_pb2.HealthCheckResponse.SERVING
    service.stub.LoadModel(model_pb2.LoadModelRequest(tag=SPARE_TAG), timeout=30)
    assert status(f"{name}/{SPARE_TAG}") == health_pb2.HealthCheckResponse.SERVING
    encode(service.stub, request(png(), tag=SPARE_TAG), timeout=10)
    service.stub.UnloadModel(model_pb2.UnloadModelRequest(tag=SPARE_TAG), timeout=30)
    assert status(f"{name}/{SPARE_TAG}") == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        encode(service.stub, request(png(), tag=SPARE_TAG), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def read_metric(service: Running, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def bad_requests() -> dict[str, tuple[vision_pb2.EncodeRequest, str, str]]:
    tiff = io.BytesIO()
    Image.new("RGB", (40, 30)).save(tiff, "TIFF")
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    return {
        "unknown tag": (request(png(), tag="other-v1.0.0"), "NOT_FOUND", "UNKNOWN_TAG"),
        "no tag": (request(png(), tag=""), "NOT_FOUND", "UNKNOWN_TAG"),
        "only a digest": (request(b""), "NOT_FOUND", "IMAGE_NOT_CACHED"),
        "25 MB": (request(bytes(25 * 2**20)), "INVALID_ARGUMENT", "IMAGE_TOO_LARGE"),
        "unsupported": (request(tiff.getvalue()), "INVALID_ARGUMENT", "IMAGE_UNSUPPORTED"),
        "text": (request(b"hello"), "INVALID_ARGUMENT", "IMAGE_UNSUPPORTED"),
        "truncated": (request(png()[:-40]), "INVALID_ARGUMENT", "IMAGE_TRUNCATED"),
        "1x1": (request(png(size=(1, 1))), "INVALID_ARGUMENT", "IMAGE_TOO_SMALL"),
        "30,000 x 30,000": (request(bomb.getvalue()), "INVALID_ARGUMENT", "IMAGE_TOO_MANY_PIXELS"),
        "digest of another": (request(png(), image_sha256=bytes(32)), "INVALID_ARGUMENT", "DIGEST_MISMATCH"),
        "no digest": (request(png(), image_sha256=b""), "INVALID_ARGUMENT", "BAD_DIGEST"),
        "long salt": (request(png(), cache_salt=bytes(65)), "INVALID_ARGUMENT", "BAD_SALT"),
    }


def test_bad_requests_cost_less_than_a_second_and_the_next_one_works(service: Running) -> None:
    good = encode(service.stub, request(png()), timeout=10).visual_tokens
    for name, (bad, code, reason) in bad_requests().items():
        before_s = read_metric(service, "process_cpu_seconds_total")
        with pytest.raises(grpc.RpcError) as caught:
            encode(service.stub, bad, timeout=10)
        assert read_metric(service, "process_cpu_seconds_total") - before_s < 1, name
        error = from_rpc_error(caught.value)
        assert (error.code.name, error.reason) == (code, reason), name
        assert "0x" not in error.message, name
        assert encode(service.stub, request(png()), timeout=10).visual_tokens == good, name


def test_metrics_count_batches_and_rejections(service: Running) -> None:
    encode(service.stub, fresh(png()), timeout=10)
    with pytest.raises(grpc.RpcError):
        encode(service.stub, request(b"hello"), timeout=10)
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    assert f'tandem_vision_batch_size_count{{tag="{TAG}"}}' in text
    assert 'tandem_vision_refusals_total{reason="IMAGE_UNSUPPORTED"}' in text
    assert 'tandem_visual_cache_requests_total{level="vision",result="miss"}' in text
    assert 'tandem_visual_cache_bytes{level="vision"}' in text


def test_overload_timeout_and_drain(models: Path) -> None:
    """One process is overloaded, then times out, then is stopped."""
    flags = (
        "--tags",
        TAG,
        "--max-batch-size",
        "4",
        "--max-queue",
        "2",  # below a batch, so that only time starts one: a machine of any speed fills the queue
        "--max-wait-ms",
        "1500",
        "--decode-processes",
        "4",
    )
    with running(models, *flags) as service:
        with ThreadPoolExecutor(40) as callers:
            outcomes = list(callers.map(lambda _: _outcome(service.stub), range(40)))
        rejected = [outcome for outcome in outcomes if outcome[0] != "OK"]
        assert 0 < len(rejected) < len(outcomes)
        assert {(code, reason) for code, reason, _ in rejected} == {("RESOURCE_EXHAUSTED", "QUEUE_FULL")}
        assert all(retry_after_s for _, _, retry_after_s in rejected)

        with pytest.raises(grpc.RpcError) as caught:
            encode(service.stub, fresh(png()), timeout=0.3)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        # The image of the timed-out call takes no slot in the next batch.
        assert encode(service.stub, fresh(png()), timeout=10).timings.batch_size == 1

        last = service.stub.Encode(fresh(png()), timeout=10)
        while read_metric(service, "tandem_vision_waiting") == 0:
            assert not last.done()
        service.process.send_signal(signal.SIGTERM)
        assert next(last).timings.queue_ms > 1000
        assert service.process.wait(timeout=10) == 0


def _outcome(stub: Any) -> tuple[str, str, float | None]:
    try:
        encode(stub, fresh(png()), timeout=30)
    except grpc.RpcError as rpc_error:
        error = from_rpc_error(rpc_error)
        return error.code.name, error.reason, error.retry_after_s
    return "OK", "", None


@pytest.mark.parametrize(
    ("flags", "code", "cause"),
    [
        (("--tags", "other-v1.0.0"), 1, "other-v1.0.0"),
        (("--max-batch-size", "0"), 2, "--max-batch-size"),
        (("--device", "cuda:99"), 2, "--device"),
    ],
)
def test_a_failed_start_names_its_cause(models: Path, flags: tuple[str, ...], code: int, cause: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        Running.command(models, *flags), capture_output=True, text=True, timeout=START_S, env=environment, check=False
    )
    assert done.returncode == code
    assert cause in done.stderr
    assert "Traceback" not in done.stderr
