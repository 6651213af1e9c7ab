"""Decoding on a GPU equals decoding on the CPU."""

import pytest
import torch

from checkpoint.families import LanguageConfig
from language_service.engine.kv_cache import CacheConfig, PagedCache
from language_service.engine.runner import Images, PlacedImage, Runner
from language_service.engine.serving import ServingDecoder
from language_service.kernels.choice import open_triton_kernels
from language_service.kernels.decode_attention import GatheredAttention
from language_service.kernels.decode_choice import (
    AttentionName,
    choose_chunk_attention,
    choose_decode_attention,
    chunk_error,
    make_inputs,
    relative_error,
)
from language_service.sampling.options import SamplingOptions
from language_service.sampling.sampler import choose
from language_service.sampling.state import SamplingState
from tests.language_service.asking import PROMPTS, ask, expected
from tests.language_service.small import CONFIG, GRIDS, WIDE, make_chunk, make_decoder, make_image, make_paged_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]
GPU = torch.device("cuda:0")
HEADS_OF_16 = CONFIG.model_copy(update={"head_dim": 16})  # the smallest that Triton computes


def make_runner(
    config: LanguageConfig, dtype: torch.dtype = torch.float32, attention: AttentionName = "auto"
) -> Runner:
    decoder = make_decoder(config)
    tensors = {name: tensor.to(GPU, dtype) for name, tensor in decoder.state_dict().items()}
    shape = CacheConfig(num_blocks=64, block_size=4)
    cache = PagedCache(decoder.config, shape, dtype=dtype, device=GPU)
    cache.choose_attention(attention)
    return Runner(ServingDecoder(decoder.config, tensors), cache)


@pytest.mark.parametrize("attention", ["torch", "triton", "auto"])
async def test_greedy_answers_equal_the_reference(attention: AttentionName) -> None:
    """Text and images, together and after preemption."""
    engine = make_paged_engine(make_runner(WIDE, attention=attention))
    try:
        decoder = make_decoder(WIDE)
        for prompt in PROMPTS:
            assert await ask(engine, prompt) == expected(decoder, prompt)
    finally:
        await engine.close()


@pytest.mark.parametrize("config", [CONFIG, WIDE, GRIDS], ids=["heads of 8", "heads of 32", "qwen3-vl"])
def test_chunks_and_steps_equal_those_on_the_cpu(config: LanguageConfig) -> None:
    device, cpu = make_runner(config), make_decoder(config)
    shape = CacheConfig(num_blocks=64, block_size=4)
    plain = Runner(cpu, PagedCache(cpu.config, shape, dtype=torch.float32, device=torch.device("cpu")))
    own = list(range(8))
    for start, token_ids in ((0, range(5, 16)), (11, range(7)), (18, [3]), (19, [4]), (20, [5])):
        chunks = [make_chunk(start, list(token_ids), own)]
        found, wanted = device.forward(chunks, []).cpu(), plain.forward(chunks, [])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def test_bfloat16_prompts_with_flash_attention_are_as_close_as_their_rounding() -> None:
    """In chunks, so that contexts are longer than chunks."""
    device, cpu = make_runner(WIDE, torch.bfloat16), make_decoder(WIDE)
    shape = CacheConfig(num_blocks=64, block_size=4)
    plain = Runner(cpu, PagedCache(cpu.config, shape, dtype=torch.float32, device=torch.device("cpu")))
    for start, end in ((0, 17), (17, 40), (40, 41)):
        chunks = [make_chunk(start, list(range(5 + start, 5 + end)), list(range(11)))]
        found, wanted = device.forward(chunks, []).float().cpu(), plain.forward(chunks, [])
        assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_recorded_steps_with_chunks_equal_the_reference() -> None:
    """Prompts with images arrive while others decode.

    All their steps are CUDA graphs.
    """
    runner = make_runner(HEADS_OF_16)
    recorded = runner._recorded_chunks
    assert recorded is not None
    image = PlacedImage(2, make_image(1))
    cpu = make_decoder(HEADS_OF_16)
    shape = CacheConfig(num_blocks=64, block_size=4)
    plain = Runner(cpu, PagedCache(cpu.config, shape, dtype=torch.float32, device=torch.device("cpu")))
    asked = image.end + 3
    batches = [
        [make_chunk(0, [0] * asked, [3, 1, 2, 9]), make_chunk(0, [5], [7])],
        [make_chunk(asked, [8], [3, 1, 2, 9]), make_chunk(1, [6, 7, 8], [7, 8], num_drafts=2)],
        [make_chunk(0, list(range(3, 73)), list(range(20, 40)))],
        [make_chunk(70, [4] * 9, list(range(20, 40))), make_chunk(asked + 1, [9], [3, 1, 2, 9])],
    ]
    placed: list[list[Images]] = [[[image], []], [[image], []], [[]], [[], [image]]]
    # Twice, because a new recording is only compared, and a later step replays it.
    for chunks, images in zip(batches * 2, placed * 2, strict=True):
        found, wanted = runner.forward(chunks, [], images).cpu(), plain.forward(chunks, [], images)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    assert sorted(recorded._steps) == [16, 128]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [8, 32])
def test_chunk_attention_equals_decoding(heads: int, dtype: torch.dtype) -> None:
    kv = torch.empty(1, 2, 512, 16, 8, 128, dtype=dtype, device=GPU)
    attention = choose_chunk_attention(choose_decode_attention("triton", kv, heads), kv, heads)
    assert attention is not None
    assert chunk_error(attention, kv, heads) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_sequences", "length"), [(1, 1), (1, 4000), (7, 130), (40, 333)])
def test_triton_attention_equals_the_gathered_one(num_sequences: int, length: int, dtype: torch.dtype) -> None:
    kv = torch.empty(1, 2, 4096, 16, 8, 128, dtype=dtype, device=GPU)
    inputs = make_inputs(kv, 32, num_sequences, length)
    for kind in (GatheredAttention(), choose_decode_attention("triton", kv, 32)):
        assert relative_error(kind, *inputs) < (1e-5 if dtype == torch.float32 else 1e-2)


def test_tokens_are_sampled_as_on_the_cpu() -> None:
    """With every option that computes with tensors."""
    options = [
        SamplingOptions(),
        SamplingOptions(temperature=0.8, top_k=9, seed=1),
        SamplingOptions(temperature=1.3, top_p=0.7, min_p=0.01, seed=2, num_logprobs=3),
        SamplingOptions(repetition_penalty=1.4, presence_penalty=0.5, logit_bias={5: 3.0}, min_tokens=2),
    ]
    logits_BV = 3 * torch.randn(4, 97, generator=torch.Generator().manual_seed(0))
    chosen = []
    for device in (torch.device("cpu"), GPU):
        states = [SamplingState(each, eos_token_ids=[2]) for each in options]
        for state in states:
            state.note_prompt([5, 6, 7])
        chosen.append(
            [[choice and choice.token_id for choice in choose(logits_BV.to(device), states)] for _ in range(8)]
        )
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_kernels_agree_with_torch(dtype: torch.dtype) -> None:
    assert open_triton_kernels(WIDE, dtype, GPU) is not None
