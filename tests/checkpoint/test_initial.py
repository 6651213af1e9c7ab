from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.families import layout
from checkpoint.initial import RandomTensors, create_checkpoint
from checkpoint.manifest import read_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.store import ModelStore

TINY = RESAMPLER_PRESETS["tiny"]


def test_equal_seeds_give_equal_checkpoints(tmp_path: Path) -> None:
    one, again = (create_checkpoint(tmp_path / name, "a-v1.0.0", TINY, seed=7) for name in ("one", "again"))
    other = create_checkpoint(tmp_path / "other", "a-v1.0.0", TINY, seed=8)
    assert one == again
    assert one.vision != other.vision
    assert one.language.digest != other.language.digest


def test_a_tensor_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    tensors = RandomTensors(TINY, seed=1, dtype=torch.float32)
    names = list(tensors)
    forwards = {name: tensors[name] for name in names}
    backwards = {name: tensors[name] for name in reversed(names)}
    assert all(torch.equal(forwards[name], backwards[name]) for name in names)
    drawn = [forwards[spec.name] for spec in layout(TINY) if spec.kind not in ("scale", "bias")]
    assert len({tuple(tensor.flatten()[:8].tolist()) for tensor in drawn}) == len(drawn)


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_random_weights_have_small_values(preset: str) -> None:
    tensors = RandomTensors(RESAMPLER_PRESETS[preset], seed=0, dtype=torch.float32)
    for spec in layout(RESAMPLER_PRESETS[preset]):
        tensor = tensors[spec.name]
        if spec.kind == "scale":
            assert bool((tensor == 1).all())
        elif spec.kind == "bias":
            assert bool((tensor == 0).all())
        else:
            assert 0.0005 < tensor.std().item() < 0.025, spec.name


def test_shards_have_about_equal_size(tmp_path: Path) -> None:
    create_checkpoint(tmp_path, "a-v1.0.0", TINY, shards=4)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "a-v1.0.0").glob("model-0000?-of-00004.safetensors"))]
    assert len(sizes) == 4
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.parametrize("shards", [1, 2, 5, 40])
def test_any_number_of_shards_holds_every_tensor_once(tmp_path: Path, shards: int) -> None:
    create_checkpoint(tmp_path, "a-v1.0.0", TINY, shards=shards)
    files = list((tmp_path / "a-v1.0.0").glob("*.safetensors"))
    names = [name for file in files for name in load_file(file)]
    assert len(files) == shards
    assert sorted(names) == sorted(spec.name for spec in layout(TINY))


@pytest.mark.parametrize("shards", [0, -1, 1000])
def test_an_impossible_number_of_shards_is_refused(tmp_path: Path, shards: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        create_checkpoint(tmp_path, "a-v1.0.0", TINY, shards=shards)
    assert caught.value.reason == "BAD_SHARDS"
    assert ModelStore(tmp_path).tags() == []


def test_an_existing_tag_is_refused(tmp_path: Path) -> None:
    before = create_checkpoint(tmp_path, "a-v1.0.0", TINY)
    with pytest.raises(FailedPrecondition) as caught:
        create_checkpoint(tmp_path, "a-v1.0.0", TINY, seed=1)
    assert caught.value.reason == "TAG_EXISTS"
    assert read_manifest(tmp_path / "a-v1.0.0") == before


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    create_checkpoint(tmp_path, "a-v1.0.0", TINY, on_tensor=lambda *facts: calls.append(facts))
    assert [name for name, _, _ in calls] == [spec.name for spec in layout(TINY)]
    assert calls[-1][1] == calls[-1][2] == 2 * sum(spec.num_parameters for spec in layout(TINY))
