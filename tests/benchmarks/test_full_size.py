"""The full-size benchmark's comparison of schemes, on a small model."""

import pytest
import torch

from benchmarks.full_size import Compared, fill_comparison
from benchmarks.tools.decoder_steps import SteppedDecoder
from benchmarks.tools.random_low_bit import quantize_random
from benchmarks.tools.report import Report
from checkpoint.families import EMBEDDING
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore
from checkpoint.weights import LoadedHalf, load_half

EXACT, ROUNDED = "tiny-v1.0.0", "tiny-int4-v1.0.0"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    root = tmp_path_factory.mktemp("models")
    create_checkpoint(root, EXACT, RESAMPLER_PRESETS["tiny"])
    quantize_random(root, EXACT, ROUNDED, "w4a16", 32)
    return ModelStore(root)


def load(store: ModelStore, tag: str) -> LoadedHalf:
    return load_half(store.folder(tag), "language", dtype=torch.bfloat16)


def test_few_bits_of_random_weights_are_close_to_them(store: ModelStore) -> None:
    name = "language_model.layers.0.mlp.w1"
    exact, rounded = load(store, EXACT).tensors, load(store, ROUNDED).tensors
    assert f"{name}.weight_packed" in rounded
    scale = rounded[f"{name}.weight_scale"].float()
    # The largest weight of a group is the largest value, 7.
    grouped = exact[f"{name}.weight"].float().view(*scale.shape, 32)
    torch.testing.assert_close(grouped.abs().amax(dim=-1), 7 * scale, rtol=0.01, atol=0)


def test_a_step_reads_all_weights_but_an_embedding_that_is_no_head(store: ModelStore) -> None:
    exact, rounded = load(store, EXACT), load(store, ROUNDED)
    all_bytes = sum(tensor.nbytes for tensor in exact.tensors.values())
    few_bytes = sum(tensor.nbytes for name, tensor in rounded.tensors.items() if name != EMBEDDING)
    for half, expected in ((exact, all_bytes), (rounded, few_bytes)):
        decoder = SteppedDecoder(half.config.language, half.tensors, max_sequences=2, num_steps=2)
        assert decoder.weight_bytes_per_step == expected
        assert decoder.rate(2) > 0


def test_a_scheme_is_compared_within_each_round() -> None:
    report = Report("full_size", "Full size")
    rates = {1: [(3.0, 2.0), (6.0, 4.0)], 8: [(8.0, 8.0), (16.0, 16.0)]}  # the machine became twice as fast
    compared = Compared(rates=rates, read_bandwidth=[30.0, 60.0], bytes_per_step=(5, 12))
    fill_comparison(report, "w4a16", int(5e9), compared)
    figures = {figure.name: figure for figure in report.figures}
    assert figures["decoder in w4a16"].met
    assert (figures["steps of 1: w4a16 / bf16"].value, figures["steps of 1: w4a16 / bf16"].met) == (1.5, True)
    assert not figures["steps of 8: w4a16 / bf16"].met
    share = figures["steps of 1: bf16, weights read per second, share of the read bandwidth"]
    assert share.value == pytest.approx(80)
