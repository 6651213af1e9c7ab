"""Releases need unchanged files and halves that fit."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, TandemError
from chassis.health import NOT_SERVING, SERVING
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore
from gateway.stages.errors import short_list
from gateway.stages.releases import SERVICE_NAME, STABLE_HEALTH_NAME, Pin, Releases, open_release
from tandem.v1 import gateway_pb2, model_pb2
from tests.gateway import scripted
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import TAG, vision_info
from tests.gateway.scripted import World

OTHER = "other-v1.0.0"


@pytest.fixture
def two(store: Path, tmp_path: Path) -> ModelStore:
    """Return a store of two checkpoints with different weights."""
    shutil.copytree(store / TAG, tmp_path / TAG)
    create_checkpoint(
        tmp_path, OTHER, RESAMPLER_PRESETS["tiny"], seed=1, dtype=torch.bfloat16, shards=1, container="safetensors"
    )
    return ModelStore(tmp_path)


def test_one_tag_names_both_halves(two: ModelStore) -> None:
    release = open_release(two, TAG)
    assert (release.vision_tag, release.language_tag, release.name) == (TAG, TAG, TAG)


def test_the_gateways_store_needs_no_vision_half(two: ModelStore) -> None:
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
def test_an_invalid_release_is_rejected(two: ModelStore, name: str, kind: type[TandemError], reason: str) -> None:
    with pytest.raises(kind) as raised:
        open_release(two, name)
    assert raised.value.reason == reason


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_changed_file_is_rejected(two: ModelStore, file: str) -> None:
    with (two.folder(TAG) / file).open("a") as text:
        text.write(" ")
    with pytest.raises(DataLoss, match=file):
        open_release(two, TAG)


def test_an_unknown_release_error_names_the_offered_releases(two: ModelStore) -> None:
    releases = Releases(two, open_release(two, TAG), vision=None, language=None)  # type: ignore[arg-type]
    releases.offer([TAG, f"{OTHER},{OTHER}"], default_name=TAG)
    with pytest.raises(NotFound, match=f"choose one of: {OTHER},{OTHER}, {TAG}"):
        releases.resolve_pin(Pin("absent-v1.0.0", may_be_on_trial=False))


def test_a_release_on_trial_is_for_those_who_may_pin_it(two: ModelStore) -> None:
    releases = Releases(two, open_release(two, TAG), vision=None, language=None)  # type: ignore[arg-type]
    releases.offer([TAG, OTHER], default_name=TAG, on_trial=OTHER)
    assert releases.resolve_pin(Pin(OTHER, may_be_on_trial=True)) == OTHER
    assert releases.resolve_pin(Pin(TAG, may_be_on_trial=False)) == TAG
    with pytest.raises(PermissionDenied) as raised:
        releases.resolve_pin(Pin(OTHER, may_be_on_trial=False))
    assert raised.value.reason == "RELEASE_ON_TRIAL"
    with pytest.raises(NotFound, match=f"choose one of: {TAG}."):
        releases.resolve_pin(Pin("absent-v1.0.0", may_be_on_trial=False))


def test_errors_name_a_few_of_many_choices() -> None:
    assert short_list([]) == "none"
    assert short_list(["b", "a"]) == "a, b"
    assert short_list("abcdefg") == "a, b, c, d, e and 2 more"


async def test_a_restarted_stage_is_found_within_seconds(world: World) -> None:
    await world.ask("Hello?")
    await world.stage_servers["language"].stop()
    with pytest.raises(grpc.RpcError):
        await world.ask("Hello?")
    await world.stage_servers["language"].start()
    async with asyncio.timeout(30):
        while not await is_ready(world):  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.1)


async def is_ready(world: World) -> bool:
    models = await world.stub.ListModels(gateway_pb2.GatewayListModelsRequest())
    return all(release.ready for release in models.releases)


async def health_of(world: World, name: str) -> Any:
    async with grpc.aio.insecure_channel(world.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


async def test_a_gateway_that_found_its_release_stays_healthy_when_a_stage_is_lost(world: World) -> None:
    """Clients then learn from it which stage is missing."""
    async with asyncio.timeout(30):
        while await health_of(world, STABLE_HEALTH_NAME) != SERVING:  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.1)
    await world.stage_servers["vision"].stop()
    async with asyncio.timeout(30):
        while await is_ready(world):  # noqa: ASYNC110  (no event to wait for)
            await asyncio.sleep(0.1)
    assert await health_of(world, STABLE_HEALTH_NAME) == SERVING


async def test_a_gateway_whose_halves_do_not_fit_is_not_healthy(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_half(store: Path) -> model_pb2.ModelInfo:
        info = vision_info(store)
        info.half_digest = bytes(32)
        return info

    monkeypatch.setattr(scripted, "vision_info", other_half)
    async with make_world(refresh_s=0.05) as world:
        await asyncio.sleep(0.5)
        assert await health_of(world, f"{SERVICE_NAME}/{TAG}") == NOT_SERVING
        assert await health_of(world, STABLE_HEALTH_NAME) == NOT_SERVING
