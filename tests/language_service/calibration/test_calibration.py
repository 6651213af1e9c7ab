"""Round small decoders by the errors of their outputs, and serve them."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from checkpoint.compressed_tensors import stored_tensors
from checkpoint.families import LanguageConfig, Quantization, Scheme
from checkpoint.quantizing import NearestRounder, Rounder
from checkpoint.rounding import Grid
from checkpoint.torch_tensors import TorchTensor
from language_service.calibration import CalibratedRounder, CalibrationImage
from language_service.calibration.prompts import Prompt, embed
from language_service.engine.serving import ServingDecoder
from language_service.kernels.plain import PlainKernels
from language_service.model import Decoder, causal_attend
from tests.language_service import one_pass
from tests.language_service.asking import Part
from tests.language_service.small import CONFIG, GRIDS, make_decoder, make_grid_image, make_image

GROUP = 16
MODELS = {"images as text": CONFIG, "images with grids and levels": GRIDS}
PARTS: dict[str, list[Part]] = {
    "images as text": [[5, 6, 7], make_image(1), [8, 9]],
    "images with grids and levels": [[5, 6], make_grid_image(1, 2, 3), [7], make_grid_image(2, 5, 1), [8, 9]],
}
models = pytest.mark.parametrize("name", MODELS)


def stored(decoder: Decoder) -> dict[str, TorchTensor]:
    return {name: TorchTensor(tensor) for name, tensor in decoder.state_dict().items()}


def prompt_of(parts: Sequence[Part]) -> Prompt:
    return [
        part
        if isinstance(part, list)
        else CalibrationImage(part, None)
        if isinstance(part, Tensor)
        else CalibrationImage(part.tokens_NX, part.grid)
        for part in parts
    ]


def texts(config: LanguageConfig) -> list[Prompt]:
    torch.manual_seed(3)
    return [[torch.randint(0, config.vocab_size, (40,)).tolist()] for _ in range(12)]


def round_all(decoder: Decoder, rounder: Rounder) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors in few bits and in float32."""
    low_bit: dict[str, Tensor] = dict(decoder.state_dict())
    exact = dict(low_bit)
    for index in range(decoder.config.num_layers):
        prefix = f"language_model.layers.{index}."
        layer = {name.removeprefix(prefix): low_bit[name] for name in low_bit if name.startswith(prefix)}
        for module, matrix in rounder.round_layer(index, layer).items():
            del low_bit[f"{prefix}{module}.weight"]
            low_bit |= stored_tensors(prefix + module, matrix.weight)
            exact[f"{prefix}{module}.weight"] = matrix.weight.dequantize()
    return low_bit, exact


def with_tensors(config: LanguageConfig, tensors: Mapping[str, Tensor]) -> Decoder:
    decoder = Decoder(config).requires_grad_(False).eval()
    decoder.load_state_dict(dict(tensors))
    return decoder


@models
def test_prompts_enter_the_first_layer_as_in_the_decoder(name: str) -> None:
    config, decoder = MODELS[name], make_decoder(MODELS[name])
    expected_TD, positions_3T, _ = one_pass.inputs(decoder, PARTS[name])
    (state,) = embed(config, stored(decoder), [prompt_of(PARTS[name])])
    torch.testing.assert_close(state.hidden_TD, expected_TD)
    expected = decoder.rotary.angles(positions_3T if config.mrope_section else positions_3T[0], torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(state.angles, expected, strict=True))


@models
def test_prompts_leave_the_last_layer_as_in_the_rounded_decoder(name: str) -> None:
    """That covers images, levels and earlier layers' errors."""
    config, decoder = MODELS[name], make_decoder(MODELS[name])
    rounder = CalibratedRounder(config, stored(decoder), Grid("w4a16", GROUP), [prompt_of(PARTS[name])])
    _, exact = round_all(decoder, rounder)
    rounded = with_tensors(config, exact)
    hidden_TD = rounder._states[0].hidden_TD
    logits_TV = rounded.logits(rounded.language_model.norm(hidden_TD))
    torch.testing.assert_close(logits_TV, one_pass.logits(rounded, PARTS[name]), rtol=1e-4, atol=1e-3)


def test_calibration_makes_the_logits_more_exact() -> None:
    decoder, prompts = make_decoder(CONFIG), texts(CONFIG)
    grid = Grid("w4a16", GROUP)
    calibrated = CalibratedRounder(CONFIG, stored(decoder), grid, prompts[:8])

    def error(rounder: Rounder) -> float:
        rounded = with_tensors(CONFIG, round_all(decoder, rounder)[1])
        pairs = [(one_pass.logits(rounded, list(one)), one_pass.logits(decoder, list(one))) for one in prompts[8:]]  # type: ignore[arg-type]
        return sum(float((one - other).norm() / other.norm()) for one, other in pairs)

    assert error(calibrated) < error(NearestRounder(grid))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16", "w4a8"])
@models
def test_a_decoder_with_few_bits_serves_its_rounded_weights(name: str, scheme: Scheme) -> None:
    config, decoder = MODELS[name], make_decoder(MODELS[name])
    group = 0 if scheme == "w8a8" else GROUP
    low_bit, exact = round_all(decoder, NearestRounder(Grid(scheme, group)))
    quantized = config.model_copy(update={"quantization": Quantization(scheme=scheme, group=group or None)})
    num_bytes = sum(tensor.nbytes for tensor in low_bit.values())
    serving = ServingDecoder(quantized, low_bit, PlainKernels(torch.float32))
    assert low_bit == {}
    assert serving.num_weight_bytes == num_bytes
    embeddings_TD, positions_3T, images = one_pass.inputs(decoder, PARTS[name])
    length = len(embeddings_TD)
    with torch.inference_mode():
        logits_TV = serving.forward(
            embeddings_TD,
            positions_3T if config.mrope_section else positions_3T[0],
            causal_attend(1, length),
            torch.arange(length),
            images,
        )
    expected_TV = one_pass.logits(with_tensors(config, exact), PARTS[name])
    # Activations of 8 bits are rounded too.
    error = float((logits_TV - expected_TV).norm() / expected_TV.norm())
    assert error < (1e-4 if scheme == "w4a16" else 0.1)
