"""Releases are read whole and only from halves that fit, and stages that come back are found again."""

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest
import torch

from chassis.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, TandemError
from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from checkpoint.store import ModelStore
from gateway.stages.releases import open_release
from tandem.v1 import gateway_pb2
from tests.gateway.halves import TAG
from tests.gateway.scripted import World

OTHER = "other-v1.0.0"


@pytest.fixture
def two(store: Path, tmp_path: Path) -> ModelStore:
    """Return a store of two checkpoints with different weights."""
    shutil.copytree(store / TAG, tmp_path / TAG)
    create_checkpoint(tmp_path, OTHER, PRESETS["tiny"], seed=1, dtype=torch.bfloat16, shards=1, container="safetensors")
    return ModelStore(tmp_path)


def test_one_tag_names_both_halves(two: ModelStore) -> None:
    release = open_release(two, TAG)
    assert (release.vision_tag, release.language_tag, release.name) == (TAG, TAG, TAG)


def test_the_vision_half_need_not_be_in_the_gateways_store(two: ModelStore) -> None:
    release = open_release(two, f"far-v1.0.0, {TAG}")
    assert (release.vision_tag, release.language_tag, release.name) == ("far-v1.0.0", TAG, f"far-v1.0.0,{TAG}")


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("not a tag", InvalidArgument, "BAD_TAG"),
        (f"not a tag,{TAG}", InvalidArgument, "BAD_TAG"),
        ("absent-v1.0.0", NotFound, "UNKNOWN_TAG"),
        (f"{OTHER},{TAG}", FailedPrecondition, "RELEASE_MISMATCH"),
    ],
)
def test_a_release_that_cannot_be_is_refused(two: ModelStore, name: str, kind: type[TandemError], reason: str) -> None:
    with pytest.raises(kind) as raised:
        open_release(two, name)
    assert raised.value.reason == reason


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_changed_file_is_refused(two: ModelStore, file: str) -> None:
    with (two.folder(TAG) / file).open("a") as text:
        text.write(" ")
    with pytest.raises(DataLoss, match=file):
        open_release(two, TAG)


async def test_a_stage_that_comes_back_is_found_again_within_seconds(world: World) -> None:
    await world.ask("Hello?")
    await world.switches["language"].off()
    with pytest.raises(grpc.RpcError):
        await world.ask("Hello?")
    await world.switches["language"].on()
    async with asyncio.timeout(30):
        while not await answers(world):  # noqa: ASYNC110  (nothing tells)
            await asyncio.sleep(0.1)


async def answers(world: World) -> bool:
    models = await world.stub.ListModels(gateway_pb2.GatewayListModelsRequest())
    return all(release.ready for release in models.releases)
