"""Kernels in Triton equal torch's. `make test-kernels` runs them on a CPU."""

import pytest
import torch
from structlog.testing import capture_logs

from language_service.engine.kv_cache import CacheConfig, PagedCache
from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.kernels import choice
from language_service.kernels.choice import open_triton_kernels
from tests.language_service.small import CONFIG, CPU, GRIDS, make_chunk, make_decoder, variants_of

WIDE = CONFIG.model_copy(update={"head_dim": 16})
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
VARIANTS = {**variants_of(WIDE), "qwen3-vl": GRIDS}


@pytest.mark.kernels
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("head_dim", [4, 32, 128])
def test_each_kernel_equals_torch_in_float32(dtype: torch.dtype, most: float, head_dim: int) -> None:
    from language_service.kernels.triton_kernels import TritonKernels, largest_error

    assert 0 < largest_error(dtype, CPU, head_dim, TritonKernels(dtype)) < most


@pytest.mark.kernels
@pytest.mark.parametrize("name", VARIANTS)
def test_a_decoder_with_triton_kernels_equals_the_plain_one(name: str) -> None:
    """In a prompt, then in steps of three sequences."""
    config = VARIANTS[name]
    tensors = make_decoder(config).state_dict()
    kernels = open_triton_kernels(config, torch.float32, CPU)
    assert kernels is not None
    runners = []
    for decoder in (ServingDecoder(config, dict(tensors)), ServingDecoder(config, dict(tensors), kernels)):
        shape = CacheConfig(num_blocks=16, block_size=4)
        cache = PagedCache(config, shape, dtype=torch.float32, device=CPU)
        runners.append(Runner(decoder, cache))
    runners[1].cache.choose_attention("triton")
    prompts = [make_chunk(0, [5, 6, 7, 8, 9], [3, 1]), make_chunk(0, [10], [2]), make_chunk(0, [11] * 4, [4, 6])]
    steps = [make_chunk(5, [12], [3, 1]), make_chunk(1, [13], [2]), make_chunk(4, [14], [4, 6])]
    for chunks in (prompts, steps):
        expected, found = (runner.forward(chunks, []) for runner in runners)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-4)


@pytest.mark.kernels
def test_kernels_that_fail_or_differ_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from language_service.kernels import triton_kernels

    for problem in (float("nan"), 0.5):
        monkeypatch.setattr(triton_kernels, "largest_error", lambda *_, problem=problem: problem)
        with capture_logs() as logs:
            assert open_triton_kernels(WIDE, torch.float32, CPU) is None
        assert [line["log_level"] for line in logs] == ["warning"]
    monkeypatch.setattr(triton_kernels.TritonKernels, "swiglu", lambda *_: 1 / 0)
    monkeypatch.undo()
    monkeypatch.setattr(triton_kernels.TritonKernels, "swiglu", lambda *_: 1 / 0)
    with capture_logs() as logs:
        assert open_triton_kernels(WIDE, torch.float32, CPU) is None
    assert "division by zero" in logs[0]["reason"]


def test_without_triton_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda _name: None)
    assert open_triton_kernels(WIDE, torch.float32, CPU) is None
