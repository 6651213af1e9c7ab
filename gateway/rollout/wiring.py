"""Opens and closes what rollouts need around the life of a gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chassis.background import in_background
from chassis.server import Server
from gateway.rollout.model_sync import ModelSync
from gateway.rollout.servicer import SERVICE_NAME, CheckOperator, RolloutsServicer
from gateway.rollout.store import FileStore, RolloutStore
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic
from gateway.stages import ModelLoading, Releases
from tandem.v1 import rollout_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Where a gateway keeps rollouts, and how often it looks at them."""

    file: Path | None  # without Redis the store itself, else the copy that is served while Redis is away
    redis_url: str | None  # the store of several gateways
    tick_s: float  # between two looks at the state and the numbers
    refresh_s: float  # between two looks at which models the stages hold
    load_timeout_s: float  # longest time a canary's models may take to load


@asynccontextmanager
async def open_rollouts(
    config: RolloutConfig,
    server: Server,
    *,
    traffic: Traffic,
    releases: Releases,
    life: ModelLoading,
    check_operator: CheckOperator,
) -> AsyncIterator[None]:
    """Take over the rollout in force, serve `tandem.v1.Rollouts`, and act on rollouts for the length of the block.

    Raises:
        FailedPrecondition: reason 'BAD_ROLLOUT_STATE', what is kept of rollouts cannot be read.
        TandemError: a release that is in force cannot be opened.
    """
    store, last_known = _stores(config)
    store_sync = StoreSync(store, traffic, last_known=last_known, tick_s=config.tick_s)
    model_sync = ModelSync(
        store_sync,
        traffic,
        releases,
        life,
        every_s=config.refresh_s,
        load_timeout_s=config.load_timeout_s,
    )
    try:
        await store_sync.open()
        for name in traffic.offered:  # before the first request, so that none waits for a tokenizer
            await releases.open(name)
        servicer = RolloutsServicer(store_sync, releases, check_operator)
        rollout_pb2_grpc.add_RolloutsServicer_to_server(servicer, server.grpc)
        server.announce(SERVICE_NAME)
        async with in_background(store_sync.run(), model_sync.run()):
            yield
    finally:
        await store.close()


def _stores(config: RolloutConfig) -> tuple[RolloutStore, FileStore | None]:
    """Return the store, and where a copy of what is elsewhere is kept."""
    here = FileStore(config.file)
    if config.redis_url is None:
        return here, None
    # Here and not above: the Redis client takes longer to import than all the rest.
    from gateway.rollout.redis_store import RedisStore

    return RedisStore(config.redis_url), here if config.file else None
