"""Compare positions with `transformers`."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel, Qwen3VLTextRotaryEmbedding

from checkpoint.families import LanguageConfig
from language_service.engine.runner import PlacedImage
from language_service.model.positions import Grid, shift_after, shift_at, token_positions
from language_service.model.rotary import Rotary
from tests.language_service.small import CONFIG, GRIDS

MERGE = 2  # patches along one side of a visual token

# Text of a length, or an image with a grid. The reference takes neighbouring images for one, so text is between them.
texts = st.integers(1, 9)
grids = st.builds(Grid, rows=st.integers(1, 7), columns=st.integers(1, 7))
prompts = st.lists(st.tuples(texts, grids), max_size=4)


def place(prompt: list[tuple[int, Grid]]) -> list[PlacedImage]:
    """Return the images of a prompt. Text precedes each."""
    images: list[PlacedImage] = []
    end = shift = 0
    for num_text, grid in prompt:
        visual = torch.empty(grid.rows * grid.columns, 0)
        images.append(PlacedImage(end + num_text, visual, grid, shift))
        end, shift = images[-1].end, shift_after(images[-1])
    return images


def reference(prompt: list[tuple[int, Grid]], num_last: int) -> tuple[list[list[int]], int]:
    """Return positions [3][T] and the shift after them, by transformers."""
    model: Any = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE)),
        get_vision_position_ids=lambda *args, **kwargs: Qwen3VLModel.get_vision_position_ids(model, *args, **kwargs),
    )
    kinds = [kind for num_text, grid in prompt for kind in [0] * num_text + [1] * (grid.rows * grid.columns)]
    kinds += [0] * num_last
    patches = torch.tensor([[1, MERGE * grid.rows, MERGE * grid.columns] for _, grid in prompt]).view(-1, 3)
    find: Any = Qwen3VLModel.get_rope_index  # its types name each kind of tensor
    positions, shifts = find(model, torch.zeros(1, len(kinds)).long(), torch.tensor([kinds]), patches)
    found: list[list[int]] = positions[:, 0].tolist()
    return found, int(shifts[0])


@given(prompt=prompts, num_last=texts)
def test_positions_equal_those_of_transformers(prompt: list[tuple[int, Grid]], num_last: int) -> None:
    images = place(prompt)
    length = (images[-1].end if images else 0) + num_last
    positions, shift = reference(prompt, num_last)
    assert list(token_positions(0, length, images)) == positions
    assert shift_at(length, images) == shift


@given(prompt=prompts, num_last=texts, data=st.data())
def test_positions_of_a_chunk_are_those_of_the_whole(
    prompt: list[tuple[int, Grid]], num_last: int, data: st.DataObject
) -> None:
    """For any cut, and if later images have not arrived."""
    images = place(prompt)
    length = (images[-1].end if images else 0) + num_last
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    whole = token_positions(0, length, images)
    known = [image for image in images if image.start < end]  # later ones may not have arrived
    for chunk in (token_positions(start, end, images), token_positions(start, end, known)):
        assert list(chunk) == [part[start:end] for part in whole]


def test_an_image_without_a_grid_has_positions_as_text() -> None:
    images = [PlacedImage(2, torch.empty(3, 0)), PlacedImage(6, torch.empty(2, 0))]
    assert token_positions(1, 9, images) == (list(range(1, 9)),) * 3
    assert shift_at(8, images) == 0


def test_an_image_shifts_the_text_after_it() -> None:
    wide, tall = (PlacedImage(2, torch.empty(6, 0), grid) for grid in (Grid(2, 3), Grid(6, 1)))
    times, rows, columns = token_positions(1, 10, [wide])
    assert times == [1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert rows == [1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert columns == [1, 2, 3, 4, 2, 3, 4, 5, 6]
    assert (shift_at(8, [wide]), shift_at(8, [tall]), shift_at(1, [wide])) == (-3, 0, 0)


def test_angles_equal_those_of_transformers() -> None:
    rope = {
        "rope_type": "default",
        "rope_theta": GRIDS.rope_theta,
        "mrope_section": list(GRIDS.mrope_section or ()),
        "mrope_interleaved": True,
    }
    theirs = Qwen3VLTextRotaryEmbedding(Qwen3VLTextConfig(head_dim=GRIDS.head_dim, rope_parameters=rope))
    positions_3T = torch.randint(0, 300, (3, 50))
    cos_1TE, sin_1TE = theirs(torch.zeros(1), positions_3T[:, None])
    cos_T1F, sin_T1F = Rotary(GRIDS).angles(positions_3T, torch.float32)
    torch.testing.assert_close(torch.cat([cos_T1F, cos_T1F], -1)[:, 0], cos_1TE[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.cat([sin_T1F, sin_T1F], -1)[:, 0], sin_1TE[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [GRIDS, CONFIG], ids=["three parts", "one part"])
def test_three_equal_parts_are_bitwise_equal_to_one(config: LanguageConfig) -> None:
    positions_T = torch.randint(0, 300, (50,))
    rotary = Rotary(config)
    alone, equal = (rotary.angles(positions, torch.float32) for positions in (positions_T, positions_T.expand(3, -1)))
    assert all(map(torch.equal, alone, equal))
