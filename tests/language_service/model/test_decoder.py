"""Compare the decoder with the slow reference, option by option."""

import math

import pytest
import torch

from checkpoint.families import LanguageConfig, RopeScaling, layout
from checkpoint.presets import PRESETS, RESAMPLER_PRESETS
from language_service.model.attention import causal_attend
from language_service.model.decoder import Decoder
from language_service.model.deepstack import ImageRows
from language_service.model.rotary import Rotary, rotate, scale_frequencies
from tests.language_service import reference
from tests.language_service.small import CONFIG, GRIDS, make_decoder, make_grid_image, make_image, variants_of

VARIANTS = {
    **variants_of(CONFIG),
    "head dim x heads is not the width": CONFIG.model_copy(update={"head_dim": 12}),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_equal_the_slow_reference(config: LanguageConfig) -> None:
    decoder = make_decoder(config)
    embeddings_TD = decoder.embed(torch.randint(0, config.vocab_size, (23,)))
    hidden_TD = decoder(embeddings_TD, torch.arange(23), causal_attend(1, 23))
    expected_TV = reference.logits(decoder, embeddings_TD)
    torch.testing.assert_close(
        decoder.logits(hidden_TD), expected_TV, rtol=1e-5, atol=1e-5 * float(expected_TV.abs().max())
    )


def test_sequences_of_a_batch_do_not_see_each_other(decoder: Decoder) -> None:
    ids_BL = torch.randint(0, CONFIG.vocab_size, (3, 11))
    together = decoder(decoder.embed(ids_BL.flatten()), torch.arange(11).repeat(3), causal_attend(3, 11))
    for index, ids_L in enumerate(ids_BL):
        alone = decoder(decoder.embed(ids_L), torch.arange(11), causal_attend(1, 11))
        torch.testing.assert_close(together.view(3, 11, -1)[index], alone)


def test_rotary_positions_depend_only_on_the_distance(decoder: Decoder) -> None:
    embeddings_TD = decoder.embed(torch.arange(9))
    here = decoder(embeddings_TD, torch.arange(9), causal_attend(1, 9))
    shifted = decoder(embeddings_TD, torch.arange(9) + 100, causal_attend(1, 9))
    reversed_order = decoder(embeddings_TD, torch.arange(9).flip(0), causal_attend(1, 9))
    torch.testing.assert_close(here, shifted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(here, reversed_order, atol=1e-2)


def test_rotation_pairs_first_and_second_half() -> None:
    """Released weights are trained with this pairing.

    Interleaved pairs would be wrong without any error.
    """
    x_THE = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    quarter = torch.tensor([[[math.pi / 2, 0.0]]])
    torch.testing.assert_close(rotate(x_THE, quarter.cos(), quarter.sin()), torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]))


def test_llama3_scaling_keeps_fast_frequencies_and_slows_slow_ones() -> None:
    """With the numbers of Llama 3.1.

    Theta is 500,000, the factor 8, the original context 8,192, the head dim 128.
    """
    config = CONFIG.model_copy(update={"head_dim": 128, "rope_theta": 500_000.0})
    plain_F = Rotary(config).frequencies_F
    scaled_F = scale_frequencies(plain_F, RopeScaling(kind="llama3", factor=8.0))
    wavelengths_F = 2 * math.pi / plain_F
    fast, slow = wavelengths_F < 8192 / 4, wavelengths_F > 8192
    between = ~fast & ~slow
    assert fast.any()
    assert slow.any()
    assert between.any()
    torch.testing.assert_close(scaled_F[fast], plain_F[fast])
    torch.testing.assert_close(scaled_F[slow], plain_F[slow] / 8)
    assert ((scaled_F < plain_F) & (scaled_F > plain_F / 8))[between].all()


def test_linear_scaling_divides_positions() -> None:
    config = CONFIG.model_copy(update={"rope_scaling": RopeScaling(kind="linear", factor=4.0)})
    scaled = Rotary(config).angles(torch.tensor([40]), torch.float32)
    plain = Rotary(CONFIG).angles(torch.tensor([10]), torch.float32)
    torch.testing.assert_close(scaled, plain)


def test_text_and_images_get_different_modality_embeddings(decoder: Decoder) -> None:
    image_ND = make_image(0)
    table = decoder.state_dict()["language_model.modality_embedding.weight"]
    torch.testing.assert_close(decoder.embed_visual(image_ND), image_ND.float() + table[1])
    ids_T = torch.tensor([5, 6])
    torch.testing.assert_close(
        decoder.embed(ids_T), decoder.state_dict()["language_model.embed_tokens.weight"][ids_T] + table[0]
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_tensors_match_the_checkpoint(preset: str) -> None:
    config = PRESETS[preset]
    with torch.device("meta"):
        decoder = Decoder(config.language)
    ours = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert ours == {spec.name: spec.shape for spec in layout(config) if spec.half == "language"}


def test_new_weights_keep_the_residual_stream_small() -> None:
    torch.manual_seed(0)
    tensors = Decoder(RESAMPLER_PRESETS["demo"].language).state_dict()
    layers = RESAMPLER_PRESETS["demo"].language.num_layers
    std = {name: float(tensor.std()) for name, tensor in tensors.items() if "norm" not in name}
    for name, deviation in std.items():
        expected = 0.02 / math.sqrt(2 * layers) if "o_proj" in name or "w2" in name else 0.02
        assert deviation == pytest.approx(expected, rel=0.05), name


def test_every_weight_learns() -> None:
    """A weight without a gradient would stay random during training."""
    decoder = Decoder(CONFIG.model_copy(update={"attention_bias": True, "tied_embeddings": False}))
    embeddings_TD = torch.cat([decoder.embed(torch.arange(6)), decoder.embed_visual(make_image(0))])
    hidden_TD = decoder(embeddings_TD, torch.arange(11), causal_attend(1, 11))
    loss = torch.nn.functional.cross_entropy(decoder.logits(hidden_TD), torch.arange(11))
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
        assert gradient.any(), name


def test_levels_of_visual_tokens_learn() -> None:
    """Each has a gradient for the vision tower."""
    decoder, image = Decoder(GRIDS), make_grid_image(0, 2, 2)
    tokens_NLD = image.tokens_NX.float().view(4, 4, GRIDS.width).requires_grad_()
    embeddings_TD = torch.cat([decoder.embed_visual(tokens_NLD[:, 0]), decoder.embed(torch.arange(3))])
    hidden_TD = decoder(embeddings_TD, torch.arange(7), causal_attend(1, 7), [ImageRows(0, tokens_NLD)])
    (gradient,) = torch.autograd.grad(hidden_TD[-1].sum(), tokens_NLD)
    assert gradient.any(dim=-1).all()


def test_bfloat16_stays_close_to_float32(decoder: Decoder) -> None:
    embeddings_TD = decoder.embed(torch.arange(20))
    exact = decoder(embeddings_TD, torch.arange(20), causal_attend(1, 20))
    rough = make_decoder(CONFIG).bfloat16()(embeddings_TD.bfloat16(), torch.arange(20), causal_attend(1, 20))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
