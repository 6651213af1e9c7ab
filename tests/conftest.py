"""What several folders' tests stand on: a model store with one tiny checkpoint, and a stack that serves it."""

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

# How long one example takes says nothing on a machine that is busy; whatever else is set stays as it is.
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Keep what is here by now out of the collector's way, as the services do.

    Looking through all that tests import stops every event loop, and the clients and servers on it, for a quarter of a
    second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let what tests start hear Ctrl-C: a shell that runs the tests in the background has them ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keep torch to one thread: on tensors this small handing work out costs more than the work.

    Sums keep one order, too, so that what is computed twice is equal to the last bit.
    """
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def unbound_log() -> None:
    """Forget fields that an earlier test bound to log lines: a server binds them in each call's own context."""
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model store with one tiny random checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    create_checkpoint(folder, TAG, RESAMPLER_PRESETS["tiny"])
    return folder


@pytest.fixture(scope="session")
def stack(store: Path) -> Iterator[Stack]:
    """Yield the three real processes, ready."""
    with Stack(StackConfig(models=store, release=TAG, precision="float32", threads=1, drain_s=2)) as stack:
        yield stack
