"""Attention in Triton equals the gathered one.

`make test-kernels` brings Triton, whose interpreter runs the kernels on a CPU, and whose compiler needs no GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from language_service.kernels.decode_attention import GatheredAttention
from language_service.kernels.decode_choice import choose_decode_attention

# The interpreter turns arrays of one element into numbers, which numpy will not allow much longer.
INTERPRETED = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
pytestmark = [pytest.mark.kernels, INTERPRETED]

BLOCK_SIZE = 4
REPOSITORY = Path(__file__).parents[3]


def inputs(lengths: list[int], group_size: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return queries, a layer of a cache, tables and lengths.

    Blocks and slots that belong to nobody are not finite.
    """
    torch.manual_seed(len(lengths) + sum(lengths))
    kv_heads, width = 2, -(-max(lengths) // BLOCK_SIZE) + 1
    num_blocks = 1 + width * len(lengths)
    kv_2PSGE = torch.full((2, num_blocks, BLOCK_SIZE, kv_heads, head_dim), float("nan"))
    tables_NM = torch.zeros(len(lengths), width, dtype=torch.long)
    free = iter(torch.randperm(num_blocks).tolist())
    for row, length in enumerate(lengths):
        for start in range(0, length, BLOCK_SIZE):
            block = tables_NM[row, start // BLOCK_SIZE] = next(free)
            used = min(BLOCK_SIZE, length - start)
            kv_2PSGE[:, block, :used] = torch.randn(2, used, kv_heads, head_dim)
    q_NHE = torch.randn(len(lengths), kv_heads * group_size, head_dim)
    return q_NHE.to(dtype), kv_2PSGE.to(dtype), tables_NM, torch.tensor(lengths)


@pytest.mark.parametrize(
    "lengths", [[1], [3, 4, 5], [15, 16, 17], [31, 32, 33, 64], [1, 130, 77]], ids=lambda lengths: str(lengths)
)
@pytest.mark.parametrize("num_processors", [1, 8, 1000], ids=lambda count: f"{count} processors")
@pytest.mark.parametrize(("group_size", "head_dim"), [(1, 16), (3, 16), (4, 32)])
def test_attention_equals_the_gathered_one_at_every_border(
    lengths: list[int], num_processors: int, group_size: int, head_dim: int
) -> None:
    """Of blocks, tiles and parts.

    Nothing past the end is read.
    """
    from language_service.kernels.triton_attention import TritonAttention

    q, kv, tables, counts = inputs(lengths, group_size, head_dim, torch.float32)
    found = TritonAttention(num_processors, tile=16).plan(tables, counts)(q, kv)
    expected = GatheredAttention().plan(tables, counts)(q, kv.nan_to_num(0))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_as_close_as_its_rounding() -> None:
    """In float16, because the interpreter multiplies no matrices of bfloat16.

    The queries are a view, as the projection gives them.
    """
    from language_service.kernels.triton_attention import TritonAttention

    q, kv, tables, counts = inputs([33, 7], 4, 32, torch.float16)
    view = torch.cat([q, torch.zeros_like(q)], dim=1)[:, : q.shape[1]]
    found = TritonAttention(8, tile=16).plan(tables, counts)(view, kv)
    assert (found.dtype, found.is_contiguous()) == (torch.float16, True)
    expected = GatheredAttention().plan(tables, counts)(q.float(), kv.float().nan_to_num(0))
    assert float((found.float() - expected).norm() / expected.norm()) < 1e-3


def test_heads_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="does not take heads of 24"):
        choose_decode_attention("triton", torch.zeros(1, 2, 1, 4, 2, 24), 4)


@pytest.mark.parametrize(
    ("capability", "shared_kib"),
    [
        pytest.param(80, 163, id="A100", marks=pytest.mark.slow),
        pytest.param(86, 99, id="A10", marks=pytest.mark.slow),
        pytest.param(89, 99, id="L4", marks=pytest.mark.slow),
        pytest.param(90, 227, id="H100"),
    ],
)
def test_all_kernels_compile_for_gpus_and_fit_their_shared_memory(capability: int, shared_kib: int) -> None:
    """Without the interpreter, in both types."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.language_service.kernels.compile_for_gpu", str(capability)]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    made = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(made) == 22
    assert {each["name"] for each in made} == {
        "_attend_part", "_attend_chunks", "_join_parts", "_place_heads", "_rms_norm", "_rotate_heads", "_swiglu"
    }  # fmt: skip
    assert all(each["async_copies"] for each in made if each["name"].startswith("_attend")), made
    assert all(each["shared"] <= 1024 * shared_kib and each["bytes"] > 1000 for each in made), made
