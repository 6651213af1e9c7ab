"""A model store with exports, and a Triton that serves them."""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from checkpoint.tags import parse_tag
from tests.vision_service.triton.repository import OTHER_TAG, PROGRAMS, TAG, Repository
from tests.vision_service.triton.server import TritonServer, replace_program
from vision_service.backends import TritonOptions
from vision_service.backends.triton_backend import TritonBackend, TritonModel
from vision_service.backends.triton_names import triton_version

Connect = Callable[..., Coroutine[Any, Any, TritonBackend]]


@pytest.fixture(scope="session")
def home() -> Path:
    """Return the folder with Triton."""
    assert "TANDEM_TRITON" in os.environ, "run these tests by `make test-triton`, which brings Triton"
    return Path(os.environ["TANDEM_TRITON"])


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = tmp_path_factory.mktemp("triton")
    made = Repository(root / "models", root / "repository")
    made.folder.mkdir()
    for seed, tag in enumerate((TAG, OTHER_TAG)):
        made.export_new(tag, seed)
        made.add(tag)
    for name, body in PROGRAMS.items():
        replace_program(made.add(TAG, name=name), body)
    return made


@pytest.fixture(scope="session")
def server(home: Path, repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(home, repository.folder, tmp_path_factory.mktemp("log") / "triton.log") as server:
        yield server


@pytest.fixture
async def connect(repository: Repository, server: TritonServer) -> AsyncIterator[Connect]:
    """Return `connect(tag, model=..., **options)`, which returns a checked backend."""
    async with AsyncExitStack() as stack:

        async def open_one(tag: str = TAG, *, model: str = "", version: str = "", **options: Any) -> TritonBackend:
            parsed = parse_tag(tag)
            backend = TritonBackend(
                repository.config,
                repository.export(tag),
                TritonModel(name=model or parsed.name, version=version or triton_version(parsed)),
                TritonOptions(**{"address": server.address, **options}),
            )
            stack.push_async_callback(backend.close)
            await backend.check()
            return backend

        yield open_one
