"""A Qwen3-VL folder through import and stack, against transformers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PillowImage
from transformers import Qwen3VLForConditionalGeneration

from checkpoint.importing import import_folder
from tandem import Client, Image, Message, Processor, assistant, system, user
from tandem.errors import InvalidArgument
from tandem.stack.stack import Stack, StackConfig
from tests.hub_folder import write_hub_folder
from tests.processing.image_zoo import IMAGES, noise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TAG = "qwen3-vl-tiny-v1.0.0"
MAX_PIXELS = 2**18
NUM_TOKENS = 64


def png(image: PillowImage.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


FILES = {name: png(image) for name, image in IMAGES.items()}

# One to four images, of other sizes each, in one turn or several.
CONVERSATIONS: dict[str, list[Message]] = {
    "text alone": [user("Hello. 你好。")],
    **{f"one image, {name}": [user(Image(file), "What is this?")] for name, file in FILES.items()},
    "two images": [user(Image(FILES["photo"]), "Compare with", Image(FILES["tiny"]), "please.")],
    "four images": [user(*(Image(FILES[name]) for name in ("grey", "very wide", "square", "very high")), "哪一张？")],
    "two turns": [
        system("Be brief."),
        user(Image(FILES["square"]), "What is this?"),
        assistant("A square."),
        user("And this?", Image(FILES["transparent"])),
    ],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub_folder(tmp_path_factory.mktemp("hub") / "Qwen3-VL-Tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def models(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    import_folder(hub, folder, TAG)
    return folder


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[Client]:
    config = StackConfig(
        models=models,
        release=TAG,
        precision="float32",
        threads=1,
        drain_s=2,
        vision_flags=("--max-resized-pixels", str(MAX_PIXELS)),
        language_flags=("--max-step-tokens", "100", "--block-size", "8", "--kv-cache-bytes", str(8 << 20)),
    )
    with Stack(config) as stack, Client(stack.address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(hub: Path, models: Path) -> dict[str, list[int]]:
    """Return the tokens that transformers generates, by conversation.

    Visual tokens travel in bfloat16, so the reference rounds its own.
    """
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(hub, dtype=torch.float32)
    model.model.visual.register_forward_hook(_round_to_bfloat16)
    processor = Processor.from_pretrained(TAG, models, max_pixels=MAX_PIXELS)
    answers = {}
    for name, messages in CONVERSATIONS.items():
        inputs: dict[str, Any] = dict(processor([messages], return_tensors="pt"))
        inputs.pop("image_attention_mask", None)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS)
        answers[name] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return answers


def _round_to_bfloat16(_module: object, _inputs: object, output: Any) -> Any:
    output.pooler_output = output.pooler_output.bfloat16().float()
    output.deepstack_features = [level.bfloat16().float() for level in output.deepstack_features]
    return output


def tokens_of(client: Client, messages: list[Message]) -> list[int]:
    answer = client.ask(messages, temperature=0, max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS, num_logprobs=0)
    return [position.chosen.token_id for position in answer.logprobs]


def test_greedy_answers_equal_those_of_transformers(client: Client, expected: dict[str, list[int]]) -> None:
    """Alone, so that nothing but the model decides."""
    for name, messages in CONVERSATIONS.items():
        assert tokens_of(client, messages) == expected[name], name


def test_answers_in_a_batch_equal_those_of_transformers(client: Client, expected: dict[str, list[int]]) -> None:
    """All at once and twice: batched, chunked, with cached prefixes."""
    jobs = list(CONVERSATIONS.items()) * 2
    with ThreadPoolExecutor(len(jobs)) as callers:
        answers = list(callers.map(lambda job: tokens_of(client, job[1]), jobs))
    assert {name: tokens for (name, _), tokens in zip(jobs, answers, strict=True)} == expected


def test_counts_and_grids_are_those_of_the_images(client: Client, models: Path) -> None:
    processor = Processor.from_pretrained(TAG, models, max_pixels=MAX_PIXELS)
    for file in FILES.values():
        messages = [user(Image(file), "What is this?")]
        answer = client.ask(messages, max_tokens=1)
        inputs = processor([messages])
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        [image] = answer.images
        assert image.grid == (rows // 2, columns // 2)
        assert image.num_visual_tokens == rows * columns // 4
        counted = client.count_tokens(messages)
        assert counted.prompt_tokens == answer.usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_an_image_the_model_cannot_take_is_named(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.ask("What?", images=[png(noise(2010, 10))])
    assert (caught.value.reason, caught.value.field) == ("IMAGE_TOO_NARROW", "messages[0].parts[0].image")


def test_the_release_samples_as_its_generation_config_says(client: Client) -> None:
    [release] = client.models()
    assert release.default_sampling.temperature == pytest.approx(0.7)
    assert (release.default_sampling.top_k, release.kind) == (20, "qwen3_vl")
    answers = {client.ask("Go on.", max_tokens=24, seed=seed).text for seed in range(4)}
    assert len(answers) == 4
