"""Two processes of vLLM share each matrix, on one CPU."""

from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.language_service.process import ask
from tests.language_service.vllm.conftest import VllmRunning
from tests.language_service.vllm.models import STABLE
from tests.language_service.vllm.processes import children
from tests.language_service.vllm.test_exact import PROMPTS, expected, requests

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

ENGINE_ARGS = '{"enforce_eager": true, "block_size": 32, "tensor_parallel_size": 2, "disable_custom_all_reduce": true}'


def test_two_way_tensor_parallelism_gives_the_answers_of_transformers(models: Path, theirs: Any) -> None:
    flags = ("--engine", "vllm", "--kv-cache-bytes", str(16 << 20), "--engine-args", ENGINE_ARGS)
    with processes.running(VllmRunning, models, "--tags", STABLE, *flags) as service:
        workers = [name for name in children(service.process.pid).values() if name.startswith("VLLM::Worker")]
        assert len(workers) == 2
        for name, parts in PROMPTS.items():
            found, _ = ask(service, *requests(service, parts), timeout=120)
            assert found == expected(theirs, parts), name
