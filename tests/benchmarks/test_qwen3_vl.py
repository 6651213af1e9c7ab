"""The benchmarks of Qwen3-VL: their model folder and their figures."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from benchmarks.peers.hub_folder import make_hub_folder
from benchmarks.peers.vision_figures import fill
from benchmarks.qwen3_vl import Images, Measurements
from benchmarks.tools.report import Report
from benchmarks.tools.traffic import zipf
from checkpoint.families import Qwen3VLConfig
from checkpoint.importing import import_folder
from checkpoint.presets import TINY_QWEN3_VL


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "hub"
    make_hub_folder(folder, TINY_QWEN3_VL)
    return folder


def test_transformers_loads_the_folder_completely(hub: Path) -> None:
    loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(hub, output_loading_info=True)
    assert not loaded[1]["missing_keys"]
    assert not loaded[1]["unexpected_keys"]
    assert loaded[0].config.vision_config.deepstack_visual_indexes == [0, 1, 2]


def test_the_folder_can_be_imported(hub: Path, tmp_path: Path) -> None:
    imported = import_folder(hub, tmp_path, "tiny-v1.0.0")
    assert isinstance(imported.config, Qwen3VLConfig)
    assert imported.config.vision == TINY_QWEN3_VL.vision


def test_every_generated_token_is_visible(hub: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(hub)
    assert len(tokenizer) == TINY_QWEN3_VL.language.vocab_size
    assert tokenizer.decode([256]) == "w256"
    assert tokenizer.encode("where?") == [tokenizer.encode(letter)[0] for letter in "where?"]


def test_images_are_new_and_some_are_large() -> None:
    images = Images()
    first, second = images.new(4), images.new(4)
    assert len(set(first + second)) == 8
    assert len(first[1]) > 2 * len(first[0])


def test_popular_images_are_drawn_most_often() -> None:
    draws = zipf([b"a", b"b", b"c", b"d"], 1000, seed=0)
    assert draws.count(b"a") > draws.count(b"b") > draws.count(b"d") > 0


def measurements(scale: float) -> Measurements:
    """Return measurements of a server that takes `scale` seconds."""
    return Measurements(
        first_new_s={"448 x 448": [scale, 2 * scale]},
        first_known_s={"448 x 448": [[scale], [2 * scale]]},
        new_per_s={1: [1 / scale, 0.5 / scale]},
        hot_per_s={1: [4 / scale, 2 / scale]},
        uncached_per_s=[1 / scale, 0.5 / scale],
        text_s=[[scale]],
        flooded_text_s=[[scale, scale]],
        flood_images=[4],
        first_texts=["a", "b"],
        peak_bytes=int(scale * 2**30),
    )


def test_figures_compare_the_servers_within_each_round() -> None:
    """The machine became twice as slow between the rounds."""
    report = Report("qwen3_vl", "Qwen3-VL")
    fill(report, {"tandem": measurements(1.0), "vllm": measurements(1.5)}, [(1e12, 1e10)])
    ratios = {figure.name: (figure.value, figure.met) for figure in report.figures if figure.aim}
    assert ratios["first token, new image of 448 x 448: vllm / tandem"] == (1.5, True)
    assert ratios["new images, 1 caller: tandem / vllm"] == (1.5, True)
    assert ratios["hot images, 1 caller: with caches / without"] == (4.0, True)
    assert ratios["first token of text while images flood, p95: vllm / tandem"] == (1.5, False)
    assert ratios["peak memory: vllm / tandem"] == (1.5, True)


def test_without_a_peer_there_are_only_our_own_figures() -> None:
    report = Report("qwen3_vl", "Qwen3-VL")
    fill(report, {"tandem": measurements(1.0)}, [(1e12, 1e10)])
    assert [figure.name for figure in report.figures if figure.aim] == ["hot images, 1 caller: with caches / without"]
    assert not any("vllm" in figure.name for figure in report.figures)
