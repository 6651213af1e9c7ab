"""Qwen3-VL inputs against transformers' processor and in its model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from checkpoint.presets import TINY_QWEN3_VL
from checkpoint.tokenizer import CHAT_TEMPLATE, byte_tokenizer
from processing.processor import Side
from tandem import Image, Message, Processor, assistant, system, user
from tests.processing.image_zoo import IMAGES
from tests.processing.test_processor import IMAGE_ID

SAMPLES = [
    [user(Image(IMAGES["photo"]), "What is this?")],
    [system("Be brief."), user("你好！")],
    [
        user("One: ", Image(IMAGES["very wide"]), "two: ", Image(IMAGES["grey"]), "?"),
        assistant("Noise."),
        user(Image(IMAGES["tiny"]), Image(IMAGES["transparent"]), "And these?"),
    ],
    [user(Image(IMAGES["very high"]), Image(IMAGES["square"]), Image(IMAGES["large"]))],
]


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return transformers' processor for the checkpoint of these tests."""
    # It asks for the type of its video processor, which needs torchvision. It has none here.
    monkeypatch.setattr(Qwen3VLProcessor, "check_argument_for_proper_class", lambda *_: None)
    vision = TINY_QWEN3_VL.vision
    images = Qwen2VLImageProcessorPil(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
    )
    make_tokenizer: Any = PreTrainedTokenizerFast
    make_processor: Any = Qwen3VLProcessor
    tokenizer = make_tokenizer(tokenizer_object=byte_tokenizer(), pad_token="<|endoftext|>")
    return make_processor(image_processor=images, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE)


def reference(oracle: Any, samples: Sequence[Sequence[Message]], side: Side) -> dict[str, torch.Tensor]:
    """Return what transformers makes of the same conversations."""

    def content(turn: Message) -> list[dict[str, str]]:
        return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.parts]

    conversations = [[{"role": turn.role, "content": content(turn)} for turn in turns] for turns in samples]
    texts = [oracle.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in conversations]
    images = [part.source for turns in samples for turn in turns for part in turn.parts if isinstance(part, Image)]
    oracle.tokenizer.padding_side = side
    return dict(oracle(text=texts, images=images or None, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[1:2], SAMPLES[3:]], ids=["batch", "text", "one sample"])
def test_every_input_equals_that_of_transformers(
    qwen: Processor, oracle: Any, samples: list[list[Message]], side: Side
) -> None:
    inputs = qwen(samples, return_tensors="pt", padding_side=side)
    expected = reference(oracle, samples, side)
    image_mask = inputs.pop("image_attention_mask")
    assert inputs.keys() == expected.keys()
    for name, tensor in inputs.items():
        assert tensor.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)
    assert image_mask.sum() == len(inputs.get("image_grid_thw", ()))


@pytest.fixture(scope="module")
def model() -> Any:
    """Return transformers' model of the checkpoint's shape, random."""
    vision, language = TINY_QWEN3_VL.vision, TINY_QWEN3_VL.language
    config = Qwen3VLConfig(
        vision_config={
            "depth": vision.num_layers,
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_heads": vision.num_heads,
            "out_hidden_size": language.width,
            "deepstack_visual_indexes": list(vision.deepstack_layers),
            "num_position_embeddings": vision.num_positions,
        },
        text_config={
            "vocab_size": language.vocab_size,
            "hidden_size": language.width,
            "intermediate_size": language.mlp_width,
            "num_hidden_layers": language.num_layers,
            "num_attention_heads": language.num_heads,
            "num_key_value_heads": language.num_kv_heads,
            "head_dim": language.head_dim,
            "eos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": language.mrope_section},
        },
        image_token_id=IMAGE_ID,
    )
    torch.manual_seed(0)
    model: Any = Qwen3VLForConditionalGeneration(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def test_a_padded_batch_generates_what_its_samples_generate_alone(qwen: Processor, model: Any) -> None:
    def generated(samples: list[list[Message]]) -> list[list[int]]:
        inputs = qwen(samples, return_tensors="pt")
        del inputs["image_attention_mask"]
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
        return [row[inputs["input_ids"].shape[1] :].tolist() for row in ids]

    samples = SAMPLES[:3]
    together = generated(samples)
    assert together == [row for sample in samples for row in generated([sample])]
    assert len({tuple(row) for row in together}) == len(samples)
