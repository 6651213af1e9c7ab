"""Whole decoders with 8 and 4 bits a weight."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from checkpoint.compressed_tensors import stored_tensors
from checkpoint.families import HEAD, LanguageConfig, Quantization
from checkpoint.rounding import Grid, best_scales, to_nearest
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache
from language_service.engine.serving import ServingDecoder
from language_service.kernels.interface import Kernels, Layer, Layers
from language_service.kernels.layers import LayerByLayer
from language_service.kernels.library import NativeLibrary
from language_service.kernels.native import NativeKernels
from language_service.kernels.native_layers import NativeLayers
from language_service.kernels.plain import PlainKernels
from tests.language_service.small import CPU, WIDE, make_decoder

SCHEMES = [
    Quantization(scheme="w8a8", head=True),
    Quantization(scheme="w4a16", group=32, head=True),
    Quantization(scheme="w4a8", group=32, head=True),
    # The kernels have no such groups, and some matrices have a float type.
    Quantization(scheme="w4a16", group=16, head=True, left_out=("language_model.layers.0.mlp.w2",)),
]
BLOCKS = ([3, 1, 9], [0, 7], [4, 2, 5, 8])  # of three sequences, in blocks of four tokens
# Length of each sequence after each step. They prefill, decode and pause.
STEPS = ([0, 0, 0], [5, 1, 0], [6, 4, 9], [7, 5, 9], [8, 5, 15])


class OneByOne(NativeKernels):
    """The same kernels, called one by one."""

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        return LayerByLayer(self, config, layers)


def round_decoder(quantization: Quantization) -> tuple[LanguageConfig, dict[str, Tensor]]:
    """Return the shape and tensors of a low-bit decoder."""
    floats = make_decoder(WIDE).bfloat16().state_dict()
    fields = {**WIDE.model_dump(), "quantization": quantization, "tied_embeddings": False}
    floats[HEAD] = floats["language_model.embed_tokens.weight"]
    tensors: dict[str, Tensor] = {}
    for name, tensor in floats.items():
        module = name.removesuffix(".weight")
        if name != HEAD and (("_proj" not in name and ".mlp." not in name) or module in quantization.left_out):
            tensors[name] = tensor
            continue
        scheme, group = quantization.scheme, quantization.group
        if name == HEAD or group is None:
            scheme, group = "w8a8", tensor.shape[1]
        grid = Grid(scheme, group)
        tensors |= stored_tensors(module, to_nearest(tensor, grid, best_scales(tensor, grid)))
    return LanguageConfig.model_validate(fields), tensors


class Served:
    """A decoder with a cache."""

    def __init__(self, config: LanguageConfig, tensors: dict[str, Tensor], kernels: Kernels) -> None:
        self.decoder = ServingDecoder(config, dict(tensors), kernels)
        name = kernels.library.name if isinstance(kernels, NativeKernels) else "plain"
        cache = CacheConfig(num_blocks=10, block_size=4)
        self.cache = PagedCache(config, cache, dtype=torch.bfloat16, device=CPU, kernels=name)
        self.cache.kv.zero_()

    @torch.inference_mode()
    def step(self, ids_T: Tensor, spans: Sequence[CacheSpan]) -> Tensor:
        """Return the logits after each token."""
        positions = torch.tensor([span.start + i for span in spans for i in range(span.length)])
        rows_R = torch.arange(len(ids_T))
        return self.decoder.forward(self.decoder.embed(ids_T), positions, self.cache.attend(spans), rows_R).clone()


def run(served: Served) -> list[Tensor]:
    """Return the logits of all steps."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for before, after in pairwise(STEPS):
        spans = [
            CacheSpan(start, end - start, blocks)
            for start, end, blocks in zip(before, after, BLOCKS, strict=True)
            if end > start
        ]
        ids_T = torch.randint(0, WIDE.vocab_size, (sum(span.length for span in spans),), generator=generator)
        found.append(served.step(ids_T, spans))
    return found


@pytest.mark.parametrize("quantization", SCHEMES, ids=str)
def test_one_call_is_bitwise_equal_to_many(native: NativeLibrary, quantization: Quantization) -> None:
    torch.set_num_threads(2)
    decoder = round_decoder(quantization)
    at_once, one_by_one = Served(*decoder, NativeKernels(native)), Served(*decoder, OneByOne(native))
    assert isinstance(at_once.decoder._layers, NativeLayers) == (quantization.group != 16)
    for found, expected in zip(run(at_once), run(one_by_one), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(at_once.cache.kv, one_by_one.cache.kv)


@pytest.mark.parametrize("quantization", SCHEMES, ids=str)
def test_the_kernels_compute_what_torch_does(native: NativeLibrary, quantization: Quantization) -> None:
    decoder = round_decoder(quantization)
    for found, expected in zip(
        run(Served(*decoder, NativeKernels(native))), run(Served(*decoder, PlainKernels(torch.bfloat16))), strict=True
    ):
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error < 0.05  # both round to bfloat16 after each operation
