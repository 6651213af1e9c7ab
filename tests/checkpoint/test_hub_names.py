"""Names of the Hub and ours map one to one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.families import QWEN3_VL_PRESETS, Qwen3VLConfig, half_of, layout
from checkpoint.presets import TINY_QWEN3_VL
from checkpoint.weight_files import canonical_name
from tests.checkpoint.test_importing import hub_name
from tests.hub_folder import random_model


@st.composite
def configs(draw: st.DrawFn) -> Qwen3VLConfig:
    """Draw a model with any number of layers and levels."""
    depth = draw(st.integers(1, 40))
    levels = draw(st.sets(st.integers(0, depth - 1), max_size=5))
    vision = {"num_layers": depth, "deepstack_layers": tuple(sorted(levels))}
    language = {
        "num_layers": draw(st.integers(len(levels) + 1, 40)),
        "num_deepstack_levels": len(levels),
        "tied_embeddings": draw(st.booleans()),
    }
    return TINY_QWEN3_VL.model_copy(
        update={
            "vision": TINY_QWEN3_VL.vision.model_copy(update=vision),
            "language": TINY_QWEN3_VL.language.model_copy(update=language),
        }
    )


@given(configs())
def test_mapping_names_is_a_bijection(config: Qwen3VLConfig) -> None:
    ours = [spec.name for spec in layout(config)]
    theirs = [hub_name(name) for name in ours]
    assert len(set(theirs)) == len(set(ours)) == len(ours)
    assert [canonical_name(name) for name in theirs] == ours
    assert [canonical_name(name.removeprefix("model.")) for name in theirs] == ours
    assert [canonical_name(name) for name in ours] == ours
    assert [half_of(canonical_name(name)) for name in theirs] == [spec.half for spec in layout(config)]


# Parts of names that the mapping looks for, and a few others.
PARTS = ("model", "visual", "language_model", "layers", "0", "attn", "self_attn", "mlp", "gate_proj", "w1", "weight")


@given(st.lists(st.sampled_from(PARTS), max_size=7).map(".".join))
def test_mapping_a_name_twice_changes_nothing_more(name: str) -> None:
    assert canonical_name(canonical_name(name)) == canonical_name(name)


@pytest.mark.parametrize("tied", [True, False])
def test_names_and_shapes_are_those_of_transformers(tied: bool) -> None:
    state = random_model(tied=tied).state_dict()
    found = {canonical_name(name): tuple(tensor.shape) for name, tensor in state.items()}
    language = TINY_QWEN3_VL.language.model_copy(update={"tied_embeddings": tied})
    specs = layout(TINY_QWEN3_VL.model_copy(update={"language": language}))
    if tied:  # in memory it shares the embedding's elements, a file does not hold it
        found.pop("lm_head.weight", None)
    assert found == {spec.name: spec.shape for spec in specs}


def test_every_preset_has_the_parameters_of_its_release() -> None:
    """Billions in total and in the vision tower."""
    counts = {
        name: tuple(
            sum(spec.num_parameters for spec in layout(config) if spec.half in halves)
            for halves in (("vision", "language"), ("vision",))
        )
        for name, config in QWEN3_VL_PRESETS.items()
    }
    assert {name: tuple(round(count / 1e9, 3) for count in pair) for name, pair in counts.items()} == {
        "qwen3-vl-2b-instruct": (2.128, 0.407),
        "qwen3-vl-4b-instruct": (4.438, 0.415),
        "qwen3-vl-8b-instruct": (8.767, 0.576),
    }
