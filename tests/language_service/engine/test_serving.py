"""Compare the serving decoder with the slow reference."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.engine.serving import ServingDecoder
from language_service.kernels import library
from language_service.kernels.choice import choose_kernels
from language_service.kernels.interface import Kernels
from language_service.kernels.library import SetName
from language_service.kernels.native import NativeKernels
from language_service.kernels.plain import OneDnnKernels, PlainKernels
from language_service.model.attention import causal_attend
from language_service.model.decoder import Decoder
from tests.language_service import one_pass, reference
from tests.language_service.asking import Part
from tests.language_service.small import CONFIG, GRIDS, WIDE, make_decoder, make_grid_image, make_image, variants_of

VARIANTS = variants_of(WIDE)


def native_kernels(name: SetName) -> Kernels:
    if library.library(name) is None:
        pytest.skip(f"the kernels for {name} cannot run here")
    return NativeKernels(library.library(name))


def one_dnn_kernels() -> Kernels:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no products of bfloat16 here")
    return OneDnnKernels(torch.bfloat16)


KINDS: dict[str, Callable[[], Kernels]] = {
    "plain": lambda: PlainKernels(torch.bfloat16),
    "oneDNN": one_dnn_kernels,
    **{name: partial(native_kernels, name) for name in library.SETS},
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def forward(serving: ServingDecoder, embeddings_TD: Tensor, rows: list[int]) -> Tensor:
    length = len(embeddings_TD)
    with torch.inference_mode():
        return serving.forward(
            embeddings_TD, torch.arange(length), causal_attend(1, length), torch.tensor(rows, dtype=torch.long)
        )


@variants
def test_float32_logits_equal_the_slow_reference(config: LanguageConfig) -> None:
    decoder = make_decoder(config)
    serving = ServingDecoder(config, dict(decoder.state_dict()))
    ids_T = torch.randint(0, config.vocab_size, (23,))
    expected_TV = reference.logits(decoder, decoder.embed(ids_T))
    logits_TV = forward(serving, serving.embed(ids_T), list(range(23)))
    torch.testing.assert_close(logits_TV, expected_TV, rtol=1e-5, atol=1e-5 * float(expected_TV.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@variants
def test_bfloat16_logits_are_close_to_exact_ones(config: LanguageConfig, kind: str) -> None:
    """Exact logits use the same weights, but compute in float32."""
    rough = make_decoder(config).bfloat16()
    exact = Decoder(config)
    exact.load_state_dict({name: tensor.float() for name, tensor in rough.state_dict().items()})
    serving = ServingDecoder(config, dict(rough.state_dict()), KINDS[kind]())
    ids_T = torch.randint(0, config.vocab_size, (23,))
    expected_TV = reference.logits(exact, exact.embed(ids_T))
    logits_TV = forward(serving, serving.embed(ids_T), list(range(23)))
    assert (logits_TV.float() - expected_TV).abs().mean() < 0.02 * expected_TV.abs().mean()


GRID_PROMPT: list[Part] = [[5, 6], make_grid_image(1, 2, 3), [7], make_grid_image(2, 5, 1), [8, 9]]


# Heads and frequencies as in the released models.
RELEASED = GRIDS.model_copy(update={"head_dim": 128, "mrope_section": (24, 20, 20)})


def forward_images(serving: ServingDecoder, decoder: Decoder) -> Tensor:
    embeddings_TD, positions_3T, images = one_pass.inputs(decoder, GRID_PROMPT)
    length = len(embeddings_TD)
    with torch.inference_mode():
        return serving.forward(embeddings_TD, positions_3T, causal_attend(1, length), torch.arange(length), images)


def test_float32_logits_of_images_equal_the_plain_decoder() -> None:
    decoder = make_decoder(GRIDS)
    logits_TV = forward_images(ServingDecoder(GRIDS, dict(decoder.state_dict())), decoder)
    expected_TV = one_pass.logits(decoder, GRID_PROMPT)
    torch.testing.assert_close(logits_TV, expected_TV, rtol=1e-5, atol=1e-5 * float(expected_TV.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [GRIDS, RELEASED], ids=["small heads", "released heads"])
def test_bfloat16_logits_of_images_are_close_to_exact_ones(config: LanguageConfig, kind: str) -> None:
    rough = make_decoder(config).bfloat16()
    exact = Decoder(config)
    exact.load_state_dict({name: tensor.float() for name, tensor in rough.state_dict().items()})
    logits_TV = forward_images(ServingDecoder(config, dict(rough.state_dict()), KINDS[kind]()), rough)
    expected_TV = one_pass.logits(exact, GRID_PROMPT)
    assert (logits_TV.float() - expected_TV).abs().mean() < 0.02 * expected_TV.abs().mean()


def test_only_wanted_rows_are_returned() -> None:
    decoder = make_decoder(CONFIG)
    serving = ServingDecoder(CONFIG, dict(decoder.state_dict()))
    embeddings_TD = serving.embed(torch.arange(9))
    all_TV = forward(serving, embeddings_TD, list(range(9)))
    torch.testing.assert_close(forward(serving, embeddings_TD, [0, 3, 8]), all_TV[[0, 3, 8]])
    assert forward(serving, embeddings_TD, []).shape == (0, CONFIG.vocab_size)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_equal_those_of_the_checkpoint(kind: str) -> None:
    """In every layout of the head."""
    decoder = make_decoder(WIDE).bfloat16()
    serving = ServingDecoder(WIDE, dict(decoder.state_dict()), KINDS[kind]())
    for ids in (torch.arange(WIDE.vocab_size), torch.tensor([[3, 96], [64, 63]])):
        assert torch.equal(serving.embed(ids), decoder.embed(ids))
    assert torch.equal(serving.embed_visual(make_image(1)), decoder.embed_visual(make_image(1)))


def test_every_tensor_is_taken_over() -> None:
    """A tensor left behind would be in memory twice."""
    for config in VARIANTS.values():
        tensors = make_decoder(config).state_dict()
        num_parameters = sum(tensor.numel() for tensor in tensors.values())
        serving = ServingDecoder(config, tensors)
        assert tensors == {}
        assert (serving.num_parameters, serving.num_weight_bytes) == (num_parameters, 4 * num_parameters)


def test_float32_never_uses_bfloat16_kernels() -> None:
    kernels = choose_kernels(WIDE, torch.float32, torch.device("cpu"))
    assert type(kernels) is PlainKernels
