import pytest
import torch

from chassis.errors import InvalidArgument
from language_service.engine.vllm_prompt import PromptForm, VllmPrompt
from language_service.model import Grid

WIDTH = 4
PAD = 77
EMBEDDED = PromptForm(width=WIDTH, dtype=torch.float32, modality_D=None, image_token_id=None)
GRIDDED = PromptForm(
    width=WIDTH, dtype=torch.float32, modality_D=None, image_token_id=PAD, reserved=frozenset({PAD, 78}), merge_size=2
)


def image(seed: int, num_tokens: int, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_text_alone_is_token_ids() -> None:
    for form in (EMBEDDED, GRIDDED):
        prompt = VllmPrompt(form, salt=b"")
        prompt.add_text([1, 2])
        prompt.add_text([3])
        assert prompt.build() == {"prompt_token_ids": [1, 2, 3]}
        assert (prompt.num_tokens, prompt.num_visual) == (3, 0)


def test_images_without_a_grid_stand_between_the_token_ids() -> None:
    one, two = image(1, 2), image(2, 3)
    prompt = VllmPrompt(EMBEDDED, salt=b"")
    prompt.add_image(one, bytes(32), None)
    prompt.add_text([5, 6])
    prompt.add_image(two, bytes(32), None)
    built = prompt.build()
    assert built["prompt_is_token_ids"] == [False] * 2 + [True] * 2 + [False] * 3
    assert torch.equal(built["prompt_embeds"], torch.cat([one.float(), torch.zeros(2, WIDTH), two.float()]))
    # A token of the text stands at images, so that the repetition penalty counts nothing that is not there.
    assert built["prompt_token_ids"] == [5, 5, 5, 6, 5, 5, 5]
    assert (prompt.num_tokens, prompt.num_visual) == (7, 5)


def test_the_modality_vector_is_added_to_images_only() -> None:
    modality_D = torch.tensor([1.0, 2.0, 3.0, 4.0])
    form = PromptForm(width=WIDTH, dtype=torch.float32, modality_D=modality_D, image_token_id=None)
    prompt = VllmPrompt(form, salt=b"")
    prompt.add_image(image(1, 2), bytes(32), None)
    prompt.add_text([5])
    embeddings_TD = prompt.build()["prompt_embeds"]
    assert torch.equal(embeddings_TD[:2], image(1, 2).float() + modality_D)
    assert torch.equal(embeddings_TD[2], torch.zeros(WIDTH))


def test_images_with_a_grid_are_one_placeholder_each() -> None:
    one, two = image(1, 6, 16), image(2, 2, 16)
    prompt = VllmPrompt(GRIDDED, salt=b"")
    prompt.add_text([5])
    prompt.add_image(one, bytes(32), Grid(2, 3))
    prompt.add_image(two, bytes([1]) * 32, Grid(1, 2))
    prompt.add_text([6])
    built = prompt.build()
    assert built["prompt_token_ids"] == [5, PAD, PAD, 6]
    images = built["multi_modal_data"]["image"]
    assert images["image_grid_thw"].tolist() == [[1, 4, 6], [1, 2, 4]]  # in patches
    assert torch.equal(images["image_embeds"], torch.cat([one, two]).float())
    assert (prompt.num_tokens, prompt.num_visual) == (10, 8)


def test_the_cache_knows_an_image_by_salt_key_and_grid() -> None:
    ids = set()
    for salt, key, grid in ((b"", 0, (2, 3)), (b"a", 0, (2, 3)), (b"", 1, (2, 3)), (b"", 0, (3, 2))):
        prompt = VllmPrompt(GRIDDED, salt=salt)
        prompt.add_image(image(1, 6, 16), bytes([key]) * 32, Grid(*grid))
        [one] = prompt.build()["multi_modal_uuids"]["image"]
        ids.add(one)
    assert len(ids) == 4


def test_the_salt_goes_into_the_prefix_hash() -> None:
    prompt = VllmPrompt(EMBEDDED, salt=b"\x00tenant")
    prompt.add_text([1])
    assert prompt.build()["cache_salt"] == b"\x00tenant".hex()


@pytest.mark.parametrize("token", [PAD, 78])
def test_text_cannot_hold_a_placeholder(token: int) -> None:
    """It would stand for an image that is not there."""
    prompt = VllmPrompt(GRIDDED, salt=b"")
    with pytest.raises(InvalidArgument) as caught:
        prompt.add_text([1, token])
    assert (caught.value.reason, caught.value.field) == ("RESERVED_TOKEN", "text.token_ids")
