"""Chunks over the paged cache equal one pass without it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from language_service.engine.kv_cache import bytes_per_block
from language_service.engine.runner import PlacedImage, Runner
from language_service.model.attention import causal_attend
from language_service.model.decoder import Decoder
from tests.language_service.small import CONFIG, make_cache, make_chunk, make_decoder, make_image

BLOCK_SIZE = 4
DECODER = make_decoder(CONFIG)


def whole(decoder: Decoder, token_ids: list[int], images: list[PlacedImage]) -> Tensor:
    """Return logits [T, V] from one pass without a cache."""
    embeddings_TD = decoder.embed(torch.tensor(token_ids))
    for image in images:
        embeddings_TD[image.start : image.end] = decoder.embed_visual(image.embeddings_NX)
    length = len(token_ids)
    return decoder.logits(decoder(embeddings_TD, torch.arange(length), causal_attend(1, length)))


def edges_of(length: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, length, *(cut for cut in cuts if cut < length)})
    return list(pairwise(edges))


# Lengths and cuts around multiples of the block size, where off-by-one errors show.
sequences = st.lists(
    st.tuples(st.integers(1, 4 * BLOCK_SIZE + 1), st.lists(st.integers(1, 4 * BLOCK_SIZE), max_size=6)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(sequences=sequences, image_at=st.integers(0, 12), seed=st.integers(0, 2**32 - 1))
def test_chunks_in_any_mix_equal_one_pass(sequences: list[tuple[int, list[int]]], image_at: int, seed: int) -> None:
    """With any lengths, any cuts, and blocks in random order."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randperm(32, generator=generator).tolist()
    runner = Runner(DECODER, make_cache(32, BLOCK_SIZE))
    expected, images, chunks = [], [], []
    for length, cuts in sequences:
        token_ids = torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist()
        fits = image_at + 5 <= length
        images.append([PlacedImage(image_at, make_image(seed % 100))] if fits else [])
        own = [blocks.pop() for _ in range(-(-length // BLOCK_SIZE))]
        expected.append(whole(DECODER, token_ids, images[-1]))
        chunks.append([make_chunk(start, token_ids[start:end], own) for start, end in edges_of(length, cuts)])
    while any(chunks):
        active = [index for index, waiting in enumerate(chunks) if waiting]
        batch = [chunks[index].pop(0) for index in active]
        logits_BV = runner.forward(batch, [], [images[index] for index in active])
        for index, chunk, logits_V in zip(active, batch, logits_BV, strict=True):
            torch.testing.assert_close(logits_V, expected[index][chunk.end - 1], rtol=1e-5, atol=2e-4)


@pytest.mark.filterwarnings("ignore")  # torch says why each flash kernel of a GPU cannot run here
def test_causal_attention_of_single_chunks_equals_one_pass() -> None:
    """As on a GPU: chunks alone, without an explicit mask.

    Slots past the end are not read.
    """
    cache = make_cache(16, BLOCK_SIZE)
    cache.has_flash = True
    cache.kv.fill_(float("nan"))
    runner, token_ids, own = Runner(DECODER, cache), list(range(5, 19)), [3, 1, 7, 2]
    other = make_chunk(0, [9, 8, 7], [11])
    for start, end in ((0, 5), (5, 7), (7, 14)):
        logits_BV = runner.forward([make_chunk(start, token_ids[start:end], own), other], [])
        expected = [whole(DECODER, token_ids, [])[end - 1], whole(DECODER, [9, 8, 7], [])[-1]]
        torch.testing.assert_close(logits_BV, torch.stack(expected), rtol=1e-5, atol=2e-4)


def test_long_and_short_contexts_decode_together() -> None:
    """Contexts of very different length use separate attention calls.

    Each call must keep its own rows.
    """
    runner = Runner(DECODER, make_cache(64, BLOCK_SIZE))
    prompts = [list(range(3, 3 + length)) for length in (60, 2, 33, 4, 5, 1)]
    free = iter(range(64))
    tables = [[next(free) for _ in range(-(-len(prompt) // BLOCK_SIZE))] for prompt in prompts]
    prefill = [
        make_chunk(0, prompt[:-1], table, samples=False)
        for prompt, table in zip(prompts, tables, strict=True)
        if len(prompt) > 1
    ]
    assert runner.forward(prefill, []).shape == (0, CONFIG.vocab_size)
    decode = [make_chunk(len(prompt) - 1, prompt[-1:], table) for prompt, table in zip(prompts, tables, strict=True)]
    for prompt, logits_V in zip(prompts, runner.forward(decode, []), strict=True):
        torch.testing.assert_close(logits_V, whole(DECODER, prompt, [])[-1], rtol=1e-5, atol=2e-4)


def test_content_of_an_earlier_owner_does_not_reach_the_next_one() -> None:
    """Attention reads positions past the end with weight 0.

    But 0 times a NaN would be a NaN.
    """
    cache = make_cache(8, BLOCK_SIZE)
    cache.kv.fill_(float("nan"))
    own = [3, 5]
    cache.clear(own)
    logits_BV = Runner(DECODER, cache).forward([make_chunk(0, [7, 8, 9, 10, 11], own)], [])
    torch.testing.assert_close(logits_BV[0], whole(DECODER, [7, 8, 9, 10, 11], [])[-1], rtol=1e-5, atol=2e-4)


def test_a_padded_table_reads_no_blocks_of_others() -> None:
    """The table of a short context is padded.

    Block 0 belongs to neither sequence.
    """
    cache = make_cache(8, BLOCK_SIZE)
    cache.kv[:, :, 0] = float("nan")
    short = make_chunk(0, [7, 8, 9, 10, 11], [1, 2], samples=False)
    long = make_chunk(0, range(9), [3, 4, 5], samples=False)
    runner = Runner(DECODER, cache)
    runner.forward([short, long], [])
    decode = [
        make_chunk(5, [12], [1, 2]),
        make_chunk(9, [9], [3, 4, 5]),
    ]
    expected = [whole(DECODER, list(range(7, 13)), [])[-1], whole(DECODER, list(range(10)), [])[-1]]
    torch.testing.assert_close(runner.forward(decode, []), torch.stack(expected), rtol=1e-5, atol=2e-4)


def test_a_step_writes_only_the_slots_of_its_tokens() -> None:
    cache = make_cache(8, BLOCK_SIZE)
    cache.kv.fill_(7.0)
    Runner(DECODER, cache).forward([make_chunk(3, [1, 2], [6, 2])], [])
    changed = (cache.kv != 7.0).flatten(4).any(-1).all(0).all(0).nonzero().tolist()
    assert changed == [[2, 0], [6, 3]]


def test_bytes_per_block_match_the_tensor() -> None:
    cache = make_cache(8, BLOCK_SIZE)
    assert cache.kv.nbytes == 8 * bytes_per_block(CONFIG, BLOCK_SIZE, torch.float32)
