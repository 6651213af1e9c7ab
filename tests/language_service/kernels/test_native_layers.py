"""All layers in one call equal single calls bitwise."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache
from language_service.engine.serving import ServingDecoder
from language_service.kernels.interface import Layer, Layers
from language_service.kernels.layers import LayerByLayer
from language_service.kernels.library import NativeLibrary
from language_service.kernels.native import NativeKernels
from language_service.model.deepstack import ImageRows
from tests.language_service.small import CPU, GRIDS, WIDE, make_decoder, make_grid_image, variants_of

VARIANTS = variants_of(WIDE)
BLOCKS = ([3, 1, 9], [0, 7], [4, 2, 5, 8])  # of three sequences, in blocks of four tokens
# Length of each sequence after each step. They prefill, decode, pause and decode again.
STEPS = ([0, 0, 0], [5, 1, 0], [6, 4, 9], [7, 5, 9], [8, 5, 15], [9, 6, 16])


class OneByOne(NativeKernels):
    """The same kernels, called one by one."""

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        return LayerByLayer(self, config, layers)


class Served:
    """A decoder with a cache."""

    def __init__(self, config: LanguageConfig, kernels: NativeKernels) -> None:
        self.decoder = ServingDecoder(config, make_decoder(config).bfloat16().state_dict(), kernels)
        self.cache = PagedCache(
            config,
            CacheConfig(num_blocks=10, block_size=4),
            dtype=torch.bfloat16,
            device=CPU,
            kernels=kernels.library.name,
        )
        self.cache.kv.zero_()

    def step(
        self, ids_T: Tensor, spans: Sequence[CacheSpan], rows: Sequence[int], images: Sequence[ImageRows] = ()
    ) -> Tensor:
        """Return the logits of `rows` after a step of `spans`."""
        positions = torch.tensor([span.start + i for span in spans for i in range(span.length)])
        with torch.inference_mode():
            embeddings_TD, rows_R = self.decoder.embed(ids_T), torch.tensor(rows).long()
            logits = self.decoder.forward(embeddings_TD, positions, self.cache.attend(spans), rows_R, images)
        return logits.clone()


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_one_call_is_bitwise_equal_to_many(native: NativeLibrary, config: LanguageConfig, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    at_once, one_by_one = Served(config, NativeKernels(native)), Served(config, OneByOne(native))
    for before, after in pairwise(STEPS):
        spans = [
            CacheSpan(start, end - start, blocks)
            for start, end, blocks in zip(before, after, BLOCKS, strict=True)
            if end > start
        ]
        ids_T = torch.randint(0, config.vocab_size, (sum(span.length for span in spans),))
        for rows in (
            [len(ids_T) - 1],
            range(0, len(ids_T), 2),
            range(len(ids_T)),
        ):  # computes the same tokens each time
            found, expected = at_once.step(ids_T, spans, rows), one_by_one.step(ids_T, spans, rows)
            assert torch.equal(found, expected)
        assert torch.equal(at_once.cache.kv, one_by_one.cache.kv)


def make_rows(first: int, seed: int, rows: int, columns: int, *, skipped: int = 0) -> ImageRows:
    """Return an image, or its end, at a row."""
    tokens_NX = make_grid_image(seed, rows, columns).tokens_NX[skipped:]
    return ImageRows(first, tokens_NX.view(len(tokens_NX), 1 + GRIDS.num_deepstack_levels, GRIDS.width))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_levels_are_added_bitwise_equally_in_one_call(native: NativeLibrary, num_threads: int) -> None:
    """For parts of images too, and for any wanted rows."""
    torch.set_num_threads(num_threads)
    ids_T, spans = torch.randint(0, GRIDS.vocab_size, (18,)), [CacheSpan(0, 11, [3, 1, 9]), CacheSpan(0, 7, [0, 7])]
    images = [make_rows(1, 1, 2, 3), make_rows(9, 2, 3, 3, skipped=7), make_rows(12, 3, 1, 1), make_rows(14, 4, 2, 2)]
    for rows in ([17], range(18), range(0, 18, 5), [10], []):
        at_once, one_by_one = Served(GRIDS, NativeKernels(native)), Served(GRIDS, OneByOne(native))
        found, expected = at_once.step(ids_T, spans, rows, images), one_by_one.step(ids_T, spans, rows, images)
        assert torch.equal(found, expected)
        assert torch.equal(at_once.cache.kv, one_by_one.cache.kv)
    assert not torch.equal(at_once.step(ids_T, spans, [17], images), at_once.step(ids_T, spans, [17]))


def test_levels_change_no_row_of_another_sequence(native: NativeLibrary) -> None:
    served = Served(GRIDS, NativeKernels(native))
    ids_T, spans = torch.randint(0, GRIDS.vocab_size, (18,)), [CacheSpan(0, 11, [3, 1, 9]), CacheSpan(0, 7, [0, 7])]
    before, after = served.step(ids_T, spans, range(18)), served.step(ids_T, spans, range(18), [make_rows(12, 1, 2, 2)])
    assert torch.equal(before[:12], after[:12])
    assert not (before[12:] == after[12:]).all(dim=1).any()


def test_a_step_without_wanted_rows_fills_the_cache(native: NativeLibrary) -> None:
    at_once, one_by_one = Served(WIDE, NativeKernels(native)), Served(WIDE, OneByOne(native))
    ids_T, spans = torch.randint(0, WIDE.vocab_size, (6,)), [CacheSpan(0, 6, [2, 1])]
    assert at_once.step(ids_T, spans, []).shape == one_by_one.step(ids_T, spans, []).shape == (0, WIDE.vocab_size)
    assert torch.equal(at_once.cache.kv, one_by_one.cache.kv)
    assert at_once.cache.kv.any()


def test_embeddings_are_not_overwritten(native: NativeLibrary) -> None:
    served = Served(WIDE, NativeKernels(native))
    embeddings_TD = served.decoder.embed(torch.arange(5))
    before_TD = embeddings_TD.clone()
    with torch.inference_mode():
        served.decoder.forward(
            embeddings_TD, torch.arange(5), served.cache.attend([CacheSpan(0, 5, [0, 1])]), torch.tensor([4])
        )
    assert torch.equal(embeddings_TD, before_TD)
