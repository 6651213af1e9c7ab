"""Opens and closes what rollouts need around the life of a gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chassis.background import in_background
from chassis.server import Server
from gateway.rollout.model_sync import Housekeeping
from gateway.rollout.servicer import SERVICE_NAME, CheckOperator, RolloutsServicer
from gateway.rollout.store import FileStore, RolloutStore
from gateway.rollout.store_sync import Keeper
from gateway.rollout.traffic import Traffic
from gateway.settings import GatewaySettings
from gateway.stages import ModelLife, Releases
from tandem.v1 import rollout_pb2_grpc


@asynccontextmanager
async def open_rollouts(
    settings: GatewaySettings,
    server: Server,
    *,
    traffic: Traffic,
    releases: Releases,
    life: ModelLife,
    check_operator: CheckOperator,
) -> AsyncIterator[None]:
    """Take over the rollout in force, serve `tandem.v1.Rollouts`, and act on rollouts for the length of the block.

    Raises:
        FailedPrecondition: reason 'BAD_ROLLOUT_STATE', what is kept of rollouts cannot be read.
        TandemError: a release that is in force cannot be opened.
    """
    store, last_known = _stores(settings)
    keeper = Keeper(store, traffic, last_known=last_known, tick_s=settings.rollout_tick_s)
    housekeeping = Housekeeping(
        keeper,
        traffic,
        releases,
        life,
        every_s=settings.refresh_s,
        load_timeout_s=settings.rollout_load_timeout_s,
    )
    try:
        await keeper.open()
        for name in traffic.offered:  # before the first request, so that none waits for a tokenizer
            await releases.open(name)
        servicer = RolloutsServicer(keeper, releases, check_operator)
        rollout_pb2_grpc.add_RolloutsServicer_to_server(servicer, server.grpc)
        server.announce(SERVICE_NAME)
        async with in_background(keeper.run(), housekeeping.run()):
            yield
    finally:
        await store.close()


def _stores(settings: GatewaySettings) -> tuple[RolloutStore, FileStore | None]:
    """Return the store, and where a copy of what is elsewhere is kept."""
    here = FileStore(settings.rollout_file)
    if settings.rollout_redis is None:
        return here, None
    # Here and not above: the Redis client takes longer to import than all the rest.
    from gateway.rollout.redis_store import RedisStore

    return RedisStore(settings.rollout_redis.get_secret_value()), here if settings.rollout_file else None
