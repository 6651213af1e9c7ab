"""Fixtures for all tests: a tiny checkpoint and a stack."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch
from hypothesis import HealthCheck, settings

from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from tandem.stack.stack import Stack, StackConfig

TAG = "tiny-v1.0.0"

# On a busy machine the time of one example says nothing. Other settings, such as those of CI, stay.
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection, as the services do.

    A full collection over them stops every event loop for a quarter of a second, and with it all clients and servers.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let processes of tests receive Ctrl-C.

    A shell that runs the tests in the background makes them ignore it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Limit torch to one thread.

    Tensors of tests are so small that distributing the work costs more than the work. With one thread sums also keep
    their order, so two runs are equal to the last bit.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def unbound_log() -> None:
    """Clear log fields that an earlier test has bound.

    A server binds them in the context of one call. Tests without a server share one context.
    """
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model store with one tiny random checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    create_checkpoint(folder, TAG, RESAMPLER_PRESETS["tiny"])
    return folder


@pytest.fixture(scope="session")
def stack(store: Path) -> Iterator[Stack]:
    """Yield the three services as ready processes."""
    with Stack(StackConfig(models=store, release=TAG, precision="float32", threads=1, drain_s=2)) as stack:
        yield stack
