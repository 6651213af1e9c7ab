"""Running services refuse broken checkpoints and keep serving."""

import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import grpc
import pytest
from safetensors.torch import load_file, save_file

from chassis.grpc_errors import from_rpc_error
from checkpoint.manifest import read_manifest, write_manifest
from tandem import Client
from tandem.stack.stack import Stack
from tandem.v1 import language_pb2_grpc, model_pb2, vision_pb2_grpc

GOOD, BAD = "tiny-v1.0.0", "broken-v1.0.0"
Stage = Literal["vision", "language"]
QUERY, EMBEDDING = "perceiver_resampler.query", "language_model.embed_tokens.weight"
PREFIXES = {"vision": ("vision_tower.", "perceiver_resampler."), "language": ("language_model.",)}


def _weights(folder: Path) -> Path:
    return folder / f"{GOOD}.safetensors"


def _change(change: Callable[[dict[str, Any], Stage], None]) -> Callable[[Path, Stage], None]:
    """Return a function that changes a checkpoint's tensors.

    The manifest stays as it is: the loader compares digests after all other checks.
    """

    def write(folder: Path, stage: Stage) -> None:
        tensors = load_file(_weights(folder))
        change(tensors, stage)
        save_file(tensors, _weights(folder))

    return write


def _drop_half(tensors: dict[str, Any], stage: Stage) -> None:
    for name in [name for name in tensors if name.startswith(PREFIXES[stage])]:
        del tensors[name]


def _drop_one(tensors: dict[str, Any], stage: Stage) -> None:
    del tensors[_one(stage)]


def _add_one(tensors: dict[str, Any], stage: Stage) -> None:
    tensors[PREFIXES[stage][0] + "blocks.99.extra"] = tensors[_one(stage)].clone()


def _reshape_one(tensors: dict[str, Any], stage: Stage) -> None:
    tensors[_one(stage)] = tensors[_one(stage)][:-1].clone()


def _flip_one(tensors: dict[str, Any], stage: Stage) -> None:
    tensors[_one(stage)][0, 0] += 1


def _one(stage: Stage) -> str:
    return QUERY if stage == "vision" else EMBEDDING


def _truncate(folder: Path, stage: Stage) -> None:
    data = _weights(folder).read_bytes()
    _weights(folder).write_bytes(data[: len(data) // 2])


def _remove(folder: Path, stage: Stage) -> None:
    shutil.rmtree(folder)


CASES: dict[str, tuple[Callable[[Path, Stage], None], str, str]] = {
    "unknown tag": (_remove, "NOT_FOUND", "UNKNOWN_TAG"),
    "wrong half": (_change(_drop_half), "FAILED_PRECONDITION", "WRONG_HALF"),
    "missing tensor": (_change(_drop_one), "FAILED_PRECONDITION", "MISSING_TENSORS"),
    "extra tensor": (_change(_add_one), "FAILED_PRECONDITION", "UNEXPECTED_TENSORS"),
    "wrong shape": (_change(_reshape_one), "FAILED_PRECONDITION", "WRONG_SHAPE"),
    "truncated file": (_truncate, "FAILED_PRECONDITION", "BAD_CHECKPOINT"),
    "digest mismatch": (_change(_flip_one), "DATA_LOSS", "DIGEST_MISMATCH"),
}


@pytest.fixture
def broken(store: Path) -> Iterator[Path]:
    """Yield a copy of the good checkpoint, to be broken."""
    folder = store / BAD
    shutil.copytree(store / GOOD, folder)
    write_manifest(read_manifest(store / GOOD).model_copy(update={"tag": BAD}), folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def stub_of(channel: grpc.Channel, stage: Stage) -> Any:
    if stage == "vision":
        return vision_pb2_grpc.VisionServiceStub(channel)
    return language_pb2_grpc.LanguageServiceStub(channel)


def cpu_s(stack: Stack, stage: Stage) -> float:
    """Return a stage's CPU time since its start, seconds."""
    with urllib.request.urlopen(stack.metrics_url(stage)) as page:
        [line] = [line for line in page.read().decode().splitlines() if line.startswith("process_cpu_seconds_total ")]
    return float(line.split()[1])


@pytest.mark.parametrize("stage", ["vision", "language"])
@pytest.mark.parametrize("case", CASES)
def test_a_broken_checkpoint_is_refused_at_once_and_the_service_keeps_serving(
    stack: Stack, store: Path, broken: Path, stage: Stage, case: str
) -> None:
    break_checkpoint, code, reason = CASES[case]
    break_checkpoint(broken, stage)
    with grpc.insecure_channel(stack.address_of(stage)) as channel:
        stub = stub_of(channel, stage)
        before_s = cpu_s(stack, stage)
        with pytest.raises(grpc.RpcError) as caught:
            stub.LoadModel(model_pb2.LoadModelRequest(tag=BAD), timeout=60)
        assert cpu_s(stack, stage) - before_s < 1  # not wall-clock time, which a busy machine prolongs
        error = from_rpc_error(caught.value)
        assert (error.code.name, error.reason) == (code, reason)
        assert str(store) not in error.message
        if case != "unknown tag":  # there is nothing to unload
            stub.UnloadModel(model_pb2.UnloadModelRequest(tag=BAD), timeout=60)
    with Client(stack.address) as client:
        assert client.ask("What?", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
