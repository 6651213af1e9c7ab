"""Checkpoints that are not whole, loaded into running services: refused at once, by name, and nobody else notices."""

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
    """Return what rewrites a checkpoint's weights; the manifest stays, which is looked at last."""

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
    """Yield a copy of the good checkpoint under another tag, to be broken."""
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
    """Return the processor time a stage has taken since it started, seconds."""
    with urllib.request.urlopen(stack.metrics_url(stage)) as page:
        [line] = [line for line in page.read().decode().splitlines() if line.startswith("process_cpu_seconds_total ")]
    return float(line.split()[1])


@pytest.mark.parametrize("stage", ["vision", "language"])
@pytest.mark.parametrize("case", CASES)
def test_a_bad_checkpoint_is_a_typed_error_at_once_and_the_next_request_works(
    stack: Stack, store: Path, broken: Path, stage: Stage, case: str
) -> None:
    spoil, code, reason = CASES[case]
    spoil(broken, stage)
    with grpc.insecure_channel(stack.address_of(stage)) as channel:
        stub = stub_of(channel, stage)
        before_s = cpu_s(stack, stage)
        with pytest.raises(grpc.RpcError) as caught:
            stub.LoadModel(model_pb2.LoadModelRequest(tag=BAD), timeout=60)
        assert cpu_s(stack, stage) - before_s < 1  # and not by the clock: a busy machine is no fault of the stage
        error = from_rpc_error(caught.value)
        assert (error.code.name, error.reason) == (code, reason)
        assert str(store) not in error.message
        if case != "unknown tag":  # which leaves nothing behind
            stub.UnloadModel(model_pb2.UnloadModelRequest(tag=BAD), timeout=60)
    with Client(stack.address) as client:
        assert client.ask("What?", max_tokens=2, ignore_eos=True).usage.completion_tokens == 2
