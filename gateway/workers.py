"""Run the gateway in several processes: `python -m gateway --workers N`.

Each worker is a gateway with its part of the limits, so that all of them together keep the limits of one.
"""

from collections.abc import Sequence
from pathlib import Path

from chassis import workers
from chassis.errors import FailedPrecondition
from gateway.settings import GatewaySettings

# Limits of the gateway that its workers divide.
_DIVIDED = (
    "max_running",
    "max_waiting",
    "max_request_bytes",
    "max_uploads",
    "image_store_bytes",
    "visual_cache_bytes",
    "max_connections",
    "max_receiving_bytes",
    "rollout_mirror_max_running",
)


def run_workers(settings: GatewaySettings, flags: Sequence[str]) -> None:
    """Supervise the workers until SIGTERM.

    Args:
        settings: of the gateway.
        flags: the command line that they were read from.

    Raises:
        SystemExit: status 1, a worker could not start or did not end well. The log says why.
    """

    def flags_of(index: int, addresses: Sequence[str]) -> list[str]:
        check(settings)
        # A later flag replaces an earlier one, and a variable.
        return [*flags, *addresses, *own_flags(settings, index)]

    workers.run_workers("gateway", settings, "gateway.worker", settings.workers, flags_of)


def own_flags(settings: GatewaySettings, index: int) -> list[str]:
    """Return the flags that only this worker has.

    Args:
        settings: of the gateway.
        index: of the worker, from 0.
    """
    own: dict[str, int | Path] = {name: _part(getattr(settings, name), index, settings.workers) for name in _DIVIDED}
    if settings.metrics_port > 0:
        own["metrics_port"] = settings.metrics_port + index
    if settings.rollout_file is not None:  # a local copy of Redis, which has a single writer
        own["rollout_file"] = settings.rollout_file.with_name(f"{settings.rollout_file.name}.{index}")
    return [text for name, value in own.items() for text in (_flag(name), str(value))]


def check(settings: GatewaySettings) -> None:
    """Check that the workers can share limits and state.

    Raises:
        FailedPrecondition: reason 'BAD_WORKERS'. The message names the setting.
    """
    needed = dict.fromkeys(_DIVIDED, 1) | {
        "max_request_bytes": settings.max_message_bytes,
        "image_store_bytes": settings.max_image_bytes,
        "max_receiving_bytes": 2 * settings.max_message_bytes,
    }
    for name, least in needed.items():
        limit = getattr(settings, name)
        if limit and limit // settings.workers < least:
            raise _bad(
                f"set {_flag(name)} to at least {least * settings.workers}, {least} for each, or lower --workers"
            )
    if settings.rollout_file is not None and settings.rollout_redis is None:
        raise _bad("workers share a rollout through --rollout-redis, not through --rollout-file alone")
    if settings.metrics_port + settings.workers - 1 > 65_535:
        raise _bad("lower --metrics-port: each worker has a port of its own, one above the other")


def _part(limit: int, index: int, num_workers: int) -> int:
    """Return a worker's part of a limit."""
    return limit // num_workers + (index < limit % num_workers)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _bad(problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"The workers cannot start: {problem}.", reason="BAD_WORKERS")
