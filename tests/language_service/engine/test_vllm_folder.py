"""The folder that vLLM reads, loaded by transformers instead."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3VLForConditionalGeneration
from transformers.utils import logging

from chassis.errors import FailedPrecondition
from checkpoint.families import LanguageConfig, ModelConfig, ResamplerModelConfig, RopeScaling
from checkpoint.presets import RESAMPLER_PRESETS, TINY_QWEN3_VL
from checkpoint.tokenizer import byte_tokenizer
from language_service.engine.vllm_folder import write_vllm_folder
from language_service.model import Decoder
from tests.language_service import one_pass
from tests.language_service.asking import Part
from tests.language_service.small import CONFIG, make_decoder, make_image, variants_of

LLAMA3 = RopeScaling(kind="llama3", factor=8, original_context_length=32)
VARIANTS = {
    **variants_of(CONFIG),
    "llama 3.1: scaled positions": CONFIG.model_copy(update={"qk_norm": False, "rope_scaling": LLAMA3}),
    "linear positions": CONFIG.model_copy(update={"rope_scaling": RopeScaling(kind="linear", factor=4)}),
    "a marked head of its own": CONFIG.model_copy(update={"tied_embeddings": False}),
}


def model_with(language: LanguageConfig) -> ResamplerModelConfig:
    return RESAMPLER_PRESETS["tiny"].model_copy(update={"language": language})


def write(folder: Path, config: ModelConfig, decoder: Decoder) -> Tensor | None:
    tensors = dict(decoder.state_dict())
    marks = write_vllm_folder(folder, config, tensors, byte_tokenizer().to_str(), dtype=torch.float32)
    assert not tensors  # so that no weight is in memory twice
    return marks


@pytest.mark.parametrize("language", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_those_of_our_decoder(tmp_path: Path, language: LanguageConfig) -> None:
    """A wrong name, shape or field would change them."""
    decoder = make_decoder(language)
    parts: list[Part] = [[5, 6, 7], make_image(1), list(range(8, 60)), make_image(2), [9]]
    expected = one_pass.logits(decoder, parts)
    mark_D = write(tmp_path, model_with(language), decoder)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    embed = theirs.get_input_embeddings()
    embeddings = [
        part.float() + (0 if mark_D is None else mark_D) if isinstance(part, Tensor) else embed(torch.tensor(part))
        for part in parts
    ]
    with torch.inference_mode():
        found = theirs(inputs_embeds=torch.cat(embeddings)[None]).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (mark_D is not None) == language.modality_embedding


def test_the_folder_of_qwen3_vl_has_the_decoder_and_a_stub_of_the_tower(tmp_path: Path) -> None:
    decoder = make_decoder(TINY_QWEN3_VL.language)
    write(tmp_path, TINY_QWEN3_VL, decoder)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    load: Any = Qwen3VLForConditionalGeneration.from_pretrained
    theirs, report = load(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert len(theirs.model.visual.deepstack_merger_list) == TINY_QWEN3_VL.num_levels - 1
    prompt = [5, 17, 99, 200, 31]
    with torch.inference_mode():
        found = theirs(input_ids=torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(found, one_pass.logits(decoder, [prompt]), rtol=1e-4, atol=1e-4)


def test_a_model_that_vllm_does_not_have_is_refused(tmp_path: Path) -> None:
    language = CONFIG.model_copy(update={"qk_norm": False, "attention_bias": True, "num_heads": 8})
    with pytest.raises(FailedPrecondition, match="--engine tandem") as caught:
        write(tmp_path, model_with(language), make_decoder(language))
    assert caught.value.reason == "NOT_SUPPORTED"
    assert not list(tmp_path.iterdir())


WRITE = """
import sys
from pathlib import Path
import torch
from checkpoint.families import Qwen3VLConfig
from checkpoint.initial import RandomTensors
from checkpoint.presets import PRESETS
from checkpoint.tokenizer import byte_tokenizer
from language_service.engine.vllm_folder import write_vllm_folder
for name in ("tiny", "tiny-qwen3-vl"):
    config = PRESETS[name]
    random = RandomTensors(config, seed=0, dtype=torch.bfloat16)
    tensors = {spec.name: random[spec.name] for spec in config.tensors() if spec.half == "language"}
    folder = Path(sys.argv[1], name)
    folder.mkdir(parents=True)
    write_vllm_folder(folder, config, tensors, byte_tokenizer().to_str(), dtype=torch.bfloat16)
"""


@pytest.mark.slow
def test_every_machine_writes_the_same_bytes(tmp_path: Path) -> None:
    """Each machine of one vLLM writes its own folder."""
    roots = [tmp_path / "one", tmp_path / "another"]
    for root, seed in zip(roots, ("1", "2"), strict=True):
        environment = {**os.environ, "PYTHONHASHSEED": seed}  # of sets, whose order differs between processes
        subprocess.run([sys.executable, "-c", WRITE, str(root)], check=True, env=environment)
    files = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")} for root in roots]
    assert len(files[0]) == 10
    assert files[0] == files[1]
