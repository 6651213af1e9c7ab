"""Compare each compiled kernel with torch in float32."""

import asyncio
from array import array
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from checkpoint.families import LanguageConfig
from language_service.engine.kv_cache import CacheConfig, PagedCache
from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.kernels import native
from language_service.kernels.native import NativeKernels
from language_service.kernels.native_attention import NativeAttention
from language_service.kernels.plain import PlainKernels
from tests.language_service.asking import PROMPTS, Part, ask
from tests.language_service.small import CPU, GRIDS, WIDE, make_decoder, make_grid_image, make_paged_engine

PLAIN = PlainKernels(torch.float32)
ROUNDING = 2.0**-8  # relative error of a bfloat16


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


def takes(kernels: NativeKernels, num_inputs: int) -> int:
    """Return the next possible number of inputs."""
    return -(-num_inputs // 32) * 32 if kernels.name == "amx" else num_inputs


def assert_rounded(found: Tensor, expected: Tensor) -> None:
    """Assert that `found` equals `expected` rounded to bfloat16.

    The order of sums may differ.
    """
    torch.testing.assert_close(found.float(), expected, rtol=ROUNDING, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("num_rows", [0, 1, 5, 6, 7, 19, 191, 193])
@pytest.mark.parametrize(("num_inputs", "num_outputs"), [(2, 1), (34, 64), (510, 65), (1030, 130)])
def test_a_projection_equals_the_product(
    kernels: NativeKernels, num_rows: int, num_inputs: int, num_outputs: int
) -> None:
    num_inputs = takes(kernels, num_inputs)
    weight_NK, bias_N = random(num_outputs, num_inputs), random(num_outputs)
    x_TK, residual_TN = random(num_rows, num_inputs), random(num_rows, num_outputs)
    product_TN = x_TK.float() @ weight_NK.float().T
    if num_rows:
        torch.testing.assert_close(kernels.head(weight_NK).logits(x_TK), product_TN, rtol=1e-4, atol=1e-3)
        assert_rounded(kernels.project(weight_NK, None)(x_TK), product_TN)
        assert_rounded(
            kernels.project(weight_NK, bias_N)(x_TK, residual_TN), product_TN + bias_N.float() + residual_TN.float()
        )


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_row_is_bitwise_equal_in_every_batch(kernels: NativeKernels, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    project = kernels.project(random(200, 608), None)
    x_TK = random(300, 608)
    together_TN = project(x_TK)
    for row in (0, 5, 6, 191, 192, 299):
        assert torch.equal(project(x_TK[row : row + 1])[0], together_TN[row])
    for num_rows in (2, 3, 17, 33, 48, 65, 200):
        assert torch.equal(project(x_TK[:num_rows]), together_TN[:num_rows])


def test_several_threads_may_call_the_kernels(kernels: NativeKernels) -> None:
    """The engines of two models share the kernels' threads."""
    torch.set_num_threads(2)
    project, x_TK = kernels.project(random(300, 224), None), random(30, 224)
    expected_TN = project(x_TK)
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda _: project(x_TK), range(200)))
    assert all(torch.equal(out_TN, expected_TN) for out_TN in found)


@pytest.mark.parametrize("num_rows", [1, 9])
def test_operations_of_a_layer_equal_torch(kernels: NativeKernels, num_rows: int) -> None:
    x_TD, weight_D = random(num_rows, 70), random(70)
    assert_rounded(kernels.rms_norm(x_TD, weight_D, 1e-6), PLAIN.rms_norm(x_TD.float(), weight_D.float(), 1e-6))
    gates_TM = 9 * random(num_rows, 2 * 37)
    assert_rounded(kernels.swiglu(gates_TM), PLAIN.swiglu(gates_TM.float()))
    angles_T1F = 10 * torch.randn(num_rows, 1, 48)
    cos_T1F, sin_T1F = angles_T1F.cos(), angles_T1F.sin()
    weight_E = random(96)
    for weight in (None, weight_E):
        around = random(num_rows, 7, 96)
        x_THE = around[:, 2:5]
        expected = PLAIN.rotate_heads(x_THE.float(), None if weight is None else weight.float(), 1e-6, cos_T1F, sin_T1F)
        before = around.clone()
        assert_rounded(kernels.rotate_heads(x_THE, weight, 1e-6, cos_T1F, sin_T1F), expected)
        assert torch.equal(around[:, :2], before[:, :2])
        assert torch.equal(around[:, 5:], before[:, 5:])


@pytest.mark.parametrize("width", [1, 16, 37, 160])
def test_the_largest_logit_is_found_at_its_first_index(
    kernels: NativeKernels, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits_BV = torch.randint(-3, 3, (50, width)).float()
    logits_BV[7, width // 2] = float("nan")
    logits_BV[8, width - 1] = float("inf")
    logits_BV[9] = float("-inf")
    monkeypatch.setattr(native, "fastest", lambda: kernels.library)
    values_B, tokens_B = native.largest(logits_BV)
    assert torch.equal(values_B.nan_to_num(nan=9), logits_BV.amax(dim=-1).nan_to_num(nan=9))
    clean = [row for row in range(50) if row != 7]
    firsts_B = (logits_BV == values_B[:, None]).float().argmax(dim=-1)
    assert torch.equal(tokens_B[clean], firsts_B[clean])


def attend_slowly(cached: Tensor, q_THE: Tensor, start: int) -> Tensor:
    """Return attention of the last tokens of one sequence.

    `cached` [2, C, G, E] has the keys and values of the whole sequence.
    """
    k_GCE, v_GCE = cached.float().transpose(1, 2)
    seen_TC = torch.arange(k_GCE.shape[1]) <= start + torch.arange(len(q_THE))[:, None]
    q_HTE = q_THE.float().transpose(0, 1)
    return functional.scaled_dot_product_attention(
        q_HTE[None], k_GCE[None], v_GCE[None], attn_mask=seen_TC, enable_gqa=True
    )[0].transpose(0, 1)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize("block_size", [1, 16, 24])
def test_attention_over_blocks_equals_torch(
    kernels: NativeKernels, heads: int, kv_heads: int, size: int, block_size: int
) -> None:
    """With sequences that decode, start and continue.

    All other blocks are NaN.
    """
    spans = [(0, 1), (63, 1), (64, 1), (200, 1), (0, 97), (5, 64), (62, 3), (130, 40)]
    lengths = [start + length for start, length in spans]
    num_blocks = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(num_blocks) + 1).tolist()
    kv = torch.full((1, 2, len(order), block_size, kv_heads, size), float("nan"), dtype=torch.bfloat16)
    num_rows = sum(length for _, length in spans)
    qkv = random(num_rows, heads + 2 * kv_heads, size)
    q_THE, k_TGE, v_TGE = qkv.split_with_sizes([heads, kv_heads, kv_heads], dim=1)
    spans_S4, tables, row, pasts = array("i"), array("i"), 0, []
    for (start, length), count in zip(spans, num_blocks, strict=True):
        blocks = [order.pop() for _ in range(count)]
        spans_S4.extend((row, start, length, len(tables)))
        tables.extend(blocks)
        past = random(2, start, kv_heads, size)
        for position in range(start):
            kv[0, :, blocks[position // block_size], position % block_size] = past[:, position]
        pasts.append(torch.cat([past, torch.stack([k_TGE, v_TGE])[:, row : row + length]], dim=1))
        row += length
    found_THE = NativeAttention(kv, kernels.library).plan(spans_S4, tables)(0, q_THE, k_TGE, v_TGE)
    row = 0
    for (start, length), cached, table in zip(spans, pasts, list(spans_S4)[3::4], strict=True):
        expected = attend_slowly(cached, q_THE[row : row + length], start)
        torch.testing.assert_close(found_THE[row : row + length].float(), expected, rtol=2e-2, atol=2e-2)
        blocks = list(tables)[table : table + -(-cached.shape[1] // block_size)]
        stored = kv[0][:, blocks].flatten(1, 2)[:, : cached.shape[1]]
        assert torch.equal(stored, cached)
        row += length
    assert kv[0, :, order[0]].isnan().all()


def test_numbers_that_are_not_finite_stay_in_their_sequence(kernels: NativeKernels) -> None:
    kv = torch.zeros(1, 2, 4, 16, 1, 32, dtype=torch.bfloat16)
    qkv = random(4, 3, 32)
    clean = NativeAttention(kv.clone(), kernels.library).plan(array("i", [0, 0, 2, 0, 2, 0, 2, 1]), array("i", [0, 1]))
    expected = clean(0, *qkv.split_with_sizes([1, 1, 1], dim=1))
    qkv[1] = float("nan")
    found = NativeAttention(kv, kernels.library).plan(array("i", [0, 0, 2, 0, 2, 0, 2, 1]), array("i", [0, 1]))(
        0, *qkv.split_with_sizes([1, 1, 1], dim=1)
    )
    assert torch.equal(found[2:], expected[2:])
    assert found[1].isnan().all()


GRID_PROMPTS: list[list[Part]] = [
    [[5, 6, 7]],
    [[9, 10], make_grid_image(1, 2, 3), [11, 12]],
    [[9, 10], make_grid_image(1, 2, 3), [13], make_grid_image(2, 1, 7), [14]],
    [make_grid_image(3, 4, 2), [13]],
    [[14], make_grid_image(1, 2, 3)],
    [list(range(20, 33))],
]


async def answers(
    decoder: ServingDecoder, prompts: list[list[Part]], *, num_blocks: int, at_once: bool, **limits: Any
) -> list[list[int]]:
    cache = PagedCache(
        decoder.config,
        CacheConfig(num_blocks=num_blocks, block_size=4),
        dtype=torch.bfloat16,
        device=CPU,
        kernels=decoder.kernels.name,  # type: ignore[arg-type]
    )
    engine = make_paged_engine(Runner(decoder, cache), tag="native-v1.0.0", **limits)
    if at_once:
        found = await asyncio.gather(*(ask(engine, parts, 40, temperature=1.0, seed=7) for parts in prompts))
    else:
        found = [await ask(engine, parts, 40, temperature=1.0, seed=7) for parts in prompts]
    await engine.close()
    return found


@pytest.mark.parametrize(
    ("config", "prompts"),
    [(WIDE, PROMPTS), (GRIDS, GRID_PROMPTS)],
    ids=["ours", "grids"],
)
async def test_answers_in_bfloat16_do_not_depend_on_the_batch(
    kernels: NativeKernels, config: LanguageConfig, prompts: list[list[Part]]
) -> None:
    """Nor on chunks, preemption, cache hits or drafts.

    Tokens are sampled, so that a single wrong bit of a logit can show.
    """
    tensors = make_decoder(config).bfloat16().state_dict()
    decoder = ServingDecoder(config, tensors, kernels)
    alone = await answers(decoder, prompts, num_blocks=64, at_once=False, reuse_prefixes=False)
    assert len({tuple(answer) for answer in alone}) == len(alone)
    assert await answers(decoder, prompts, num_blocks=64, at_once=True) == alone
    assert await answers(decoder, prompts, num_blocks=64, at_once=True, max_step_tokens=9) == alone
    assert await answers(decoder, prompts, num_blocks=18, at_once=True, max_running=3, max_step_tokens=8) == alone
    assert await answers(decoder, prompts, num_blocks=64, at_once=True, max_drafts=6) == alone
