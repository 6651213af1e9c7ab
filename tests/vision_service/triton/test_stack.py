"""Questions through the whole stack, on a Triton that is killed."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chassis.errors import Code
from tandem.client.aio import AsyncClient
from tests.end_to_end.cluster import Cluster, image
from tests.end_to_end.load import DEADLINE_S, GRACE_S, LoadGenerator, Outcome, count_outcomes
from tests.vision_service.triton.repository import Repository
from tests.vision_service.triton.server import TritonServer

pytestmark = [pytest.mark.triton, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def own_server(home: Path, repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Return a Triton that tests kill."""
    with TritonServer(home, repository.folder, tmp_path_factory.mktemp("log") / "killed.log", models="tiny") as server:
        yield server


@pytest.fixture(scope="module")
def cluster(repository: Repository, own_server: TritonServer) -> Iterator[Cluster]:
    flags = ["--backend", "triton", "--triton-address", own_server.address, "--triton-shared-memory", "system"]
    with Cluster(repository.store, vision_flags=flags) as cluster:
        yield cluster
    for region in Path("/dev/shm").glob("tandem-inputs-*"):  # of the vision service, which was killed
        if not Path("/proc", region.name.split("-")[2]).exists():
            region.unlink()


async def answer(cluster: Cluster, number: int) -> str:
    async with AsyncClient(cluster.address("gateway-0"), timeout_s=DEADLINE_S) as client:
        stream = client.generate("Which colour?", images=[image(number)], max_tokens=16, temperature=0, ignore_eos=True)
        async for _ in stream:
            pass
        return stream.text


async def test_an_answer_is_the_same_as_with_onnx_runtime(repository: Repository, cluster: Cluster) -> None:
    on_triton = [await answer(cluster, number) for number in (1, 200, 90_000)]
    with Cluster(repository.store, vision_flags=["--backend", "onnxruntime"]) as other:
        assert [await answer(other, number) for number in (1, 200, 90_000)] == on_triton
    assert all(on_triton)


@asynccontextmanager
async def under_load(cluster: Cluster, *, streams: int, before: int, after: int) -> AsyncIterator[LoadGenerator]:
    """Run a load around the block, then check its outcomes."""
    load = LoadGenerator({name: cluster.address(name) for name in cluster.gateways}, streams=streams)
    running = asyncio.create_task(load.run())
    try:
        await load.wait_for_outcomes(before)
        yield load
        await load.wait_for_outcomes(len(load.outcomes) + after)
        load.stop()
        async with asyncio.timeout(DEADLINE_S + GRACE_S):
            await running
    finally:
        running.cancel()
    slowest_s = max(one.seconds for one in load.outcomes)
    print(f"\n{len(load.outcomes)} requests: {count_outcomes(load.outcomes)}; slowest {slowest_s:.1f} s")
    assert slowest_s < DEADLINE_S + GRACE_S
    assert not cluster.unexpected_errors()


@pytest.mark.parametrize(
    ("streams", "before", "after"),
    [pytest.param(12, 24, 60, id="short"), pytest.param(50, 300, 900, id="steady", marks=pytest.mark.slow)],
)
async def test_a_killed_triton_fails_images_alone_until_it_is_back(
    cluster: Cluster, own_server: TritonServer, streams: int, before: int, after: int
) -> None:
    async with under_load(cluster, streams=streams, before=before, after=after) as load:
        own_server.kill()
        killed_at = time.monotonic()
        await load.wait_for_outcomes(len(load.outcomes) + after)
        await asyncio.to_thread(own_server.start)
        back_at = time.monotonic()
    failed = [one for one in load.outcomes if one.error is not None]
    assert failed
    assert all(one.with_image and one.ended_at > killed_at for one in failed)
    assert all(one.began_at < back_at + 1 for one in failed), "a restarted Triton serves at once"
    for one in failed:
        assert one.error is not None
        assert one.error.code == Code.UNAVAILABLE
        assert one.error.reason in ("TRITON_UNREACHABLE", "TRITON_NOT_READY", "TRITON_NO_VERSION"), one.error
        assert own_server.address not in one.error.message
    assert [one for one in load.ended_after(back_at) if one.with_image and one.error is None]
    assert len(unharmed(load, killed_at, back_at)) >= after // 3


def unharmed(load: LoadGenerator, start: float, end: float) -> list[Outcome]:
    """Return the questions without images that were answered meanwhile."""
    return [one for one in load.outcomes if start < one.ended_at < end and not one.with_image and one.error is None]


async def test_a_service_without_its_triton_does_not_start(repository: Repository, own_server: TritonServer) -> None:
    own_server.kill()
    try:
        flags = ["--backend", "triton", "--triton-address", own_server.address]
        with (
            pytest.raises(AssertionError, match=r"TRITON_UNREACHABLE|cannot be reached"),
            Cluster(repository.store, vision_flags=flags),
        ):
            pass
    finally:
        await asyncio.to_thread(own_server.start)
