"""A language service with vLLM as its engine."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests import processes
from tests.language_service.process import Running
from tests.language_service.vllm.models import STABLE, make_store, make_theirs

HOME = Path(os.environ.get("TANDEM_VLLM", ".peers/vllm"))
# Compiling takes a minute and changes no result.
ENGINE_FLAGS = (
    *("--engine", "vllm", "--kv-cache-bytes", str(16 << 20)),
    *("--engine-args", '{"enforce_eager": true, "block_size": 32}'),
)


class VllmRunning(Running):
    """A language service in vLLM's environment."""

    python: ClassVar[str] = str(HOME / "bin" / "python")


@pytest.fixture(autouse=True, scope="session")
def environment() -> None:
    """Let vLLM's processes find Tandem and share the processor."""
    assert (HOME / "ready").exists(), "run these tests by `make test-vllm`, which brings vLLM"
    repository = Path(__file__).parents[3]
    os.environ["PYTHONPATH"] = f"{repository / 'benchmarks' / 'peers' / 'vllm_path'}{os.pathsep}{repository}"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def theirs() -> Any:
    return make_theirs()


@pytest.fixture(scope="session")
def models(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("models"), theirs)


@pytest.fixture(scope="session")
def service(models: Path) -> Iterator[VllmRunning]:
    """Yield a service with small batches and a short queue."""
    flags = (*ENGINE_FLAGS, "--max-running", "4", "--max-waiting", "12")
    with processes.running(VllmRunning, models, "--tags", STABLE, *flags) as running:
        yield running
