"""Open and close the rollout parts of a gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from chassis.background import in_background
from chassis.server import Server
from checkpoint.store import ModelStore
from gateway.admission import Operators
from gateway.answer import ExchangeBuilder
from gateway.rollout.feedback import Feedback
from gateway.rollout.model_sync import ModelSync
from gateway.rollout.probe_runner import ProbeRunner
from gateway.rollout.servicer import SERVICE_NAME, RolloutsServicer
from gateway.rollout.step_probes import StepProbes
from gateway.rollout.store import FileStore, NoStore, RolloutStore
from gateway.rollout.store_sync import StoreSync
from gateway.rollout.traffic import Traffic
from gateway.stages import ModelLoading, Releases
from tandem.v1 import rollout_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutConfig:
    """Where rollouts are stored, and how often they are checked."""

    file: Path | None  # the store itself, or with Redis a local copy for a start while Redis is unreachable
    redis_url: str | None  # the store of several gateways
    redis_prefix: str = "tandem"  # of its keys
    tick_s: float  # between two reads of the store
    refresh_s: float  # between two checks of the models at the stages
    load_timeout_s: float  # longest time to load a canary's models
    num_workers: int = 1  # processes of this gateway, which share a rollout through Redis alone
    probes_file: Path | None = None  # further probes, beside those of the releases
    grader: str | None = None  # judges probes with the judge `grader`


@asynccontextmanager
async def open_rollouts(
    config: RolloutConfig,
    server: Server,
    *,
    traffic: Traffic,
    releases: Releases,
    loading: ModelLoading,
    exchanges: ExchangeBuilder,
    feedback: Feedback,
    models: ModelStore,
    operators: Operators,
) -> AsyncIterator[StoreSync]:
    """Serve `tandem.v1.Rollouts` and sync the rollout within the block.

    Yields the sync with the store, which knows the rollout.

    Raises:
        FailedPrecondition: reason 'BAD_ROLLOUT_STATE', the stored state is not valid. Reason 'BAD_REDIS', the address
            is not that of a single server.
        TandemError: a release in force cannot be opened.
    """
    store, local_copy = await _open_stores(config)
    store_sync = StoreSync(store, traffic, local_copy=local_copy, tick_s=config.tick_s, share=feedback.share)
    feedback.open(store)
    traffic.share_keys(store.use_key)
    probes = ProbeRunner(store_sync, traffic, exchanges, models, file=config.probes_file, grader=config.grader)
    model_sync = ModelSync(
        store_sync,
        traffic,
        releases,
        loading,
        probes,
        every_s=config.refresh_s,
        load_timeout_s=config.load_timeout_s,
    )
    try:
        await store_sync.open()
        for name in traffic.offered:  # before the first request, which would wait for a tokenizer
            await releases.open(name)
        servicer = RolloutsServicer(store_sync, releases, probes, operators)
        rollout_pb2_grpc.add_RolloutsServicer_to_server(servicer, server.grpc)
        server.announce(SERVICE_NAME, operators.name_of)
        step_probes = StepProbes(store_sync, probes, every_s=config.refresh_s)
        async with in_background(store_sync.run(), model_sync.run(), step_probes.run()):
            yield store_sync
    finally:
        await store.close()


async def _open_stores(config: RolloutConfig) -> tuple[RolloutStore, FileStore | None]:
    """Return the store, and a remote store's local copy."""
    if config.redis_url is None:
        return (FileStore(config.file) if config.num_workers == 1 else NoStore(None)), None
    file_store = FileStore(config.file)
    # Imported only if used: the Redis client takes longer to import than everything else.
    from gateway.rollout.redis_store import RedisStore

    store = RedisStore(config.redis_url, prefix=config.redis_prefix)
    try:
        await store.check()
    except BaseException:
        await store.close()
        raise
    return store, file_store if config.file else None
