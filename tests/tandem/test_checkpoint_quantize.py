"""`tandem checkpoint quantize` inside this process."""

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from chassis.errors import TandemError
from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from tandem.commands.checkpoint import app

SOURCE, RESULT = "tiny-v1.0.0", "tiny-int4-v1.0.0"


def run(store: Path, *arguments: object) -> str:
    given = ["quantize", SOURCE, "--tag", RESULT, "--group", "32", "--models", store, *arguments]
    result = CliRunner().invoke(app, [str(argument) for argument in given], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def facts(store: Path) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, ["tags", "--json", "--models", str(store)], catch_exceptions=False)
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def write_prompts(path: Path) -> None:
    """Write prompts with and without an image."""
    file = io.BytesIO()
    Image.effect_noise((64, 48), 80).convert("RGB").save(file, "PNG")
    data = file.getvalue()
    image = {"type": "image", "sha256": hashlib.sha256(data).hexdigest()}
    contents = ["What is this?", [image, {"type": "text", "text": "Which colour?"}], [{"type": "text", "text": "No."}]]
    lines = [{"image": base64.b64encode(data).decode()}] + [
        {"id": str(number), "judge": {"exact": "a"}, "messages": [{"role": "user", "content": content}]}
        for number, content in enumerate(contents)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("preset", ["tiny", "tiny-qwen3-vl"])
def test_prompts_with_images_calibrate_a_checkpoint(tmp_path: Path, preset: str) -> None:
    store, prompts = tmp_path / "models", tmp_path / "prompts.jsonl"
    create_checkpoint(store, SOURCE, PRESETS[preset])
    write_prompts(prompts)
    output = run(store, "--scheme", "w4a16", "--prompts", prompts, "--no-compare")
    assert "layer   0" in output
    assert "head " in output
    assert "GPTQ" in output
    source, result = sorted(facts(store), key=lambda entry: str(entry["tag"]) == RESULT)
    assert (source["quantization"], result["quantization"]) == ("", "w4a16 g32")
    assert source["vision_digest"] == result["vision_digest"]


def test_a_checkpoint_is_inspected_with_its_bits(tmp_path: Path) -> None:
    create_checkpoint(tmp_path, SOURCE, PRESETS["tiny"])
    assert "to nearest" in run(tmp_path, "--scheme", "w8a8", "--no-compare")
    arguments = ["inspect", RESULT, "--json", "--models", str(tmp_path)]
    found = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert found["quantization"] == "w8a8"
    assert found["first_q_projection"]["dtype"] == "w8a8"
    assert found["weight_bytes"]["w8a8"] < found["weight_bytes"]["bf16"]
    shown = CliRunner().invoke(app, ["inspect", RESULT, "--models", str(tmp_path)], catch_exceptions=False).stdout
    assert "matrices of the decoder" in shown


def test_a_release_without_probes_says_so(tmp_path: Path) -> None:
    create_checkpoint(tmp_path, SOURCE, PRESETS["tiny"])
    assert "has no probes to compare" in run(tmp_path, "--scheme", "w8a8")


def test_a_tag_that_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    create_checkpoint(tmp_path, SOURCE, PRESETS["tiny"])
    create_checkpoint(tmp_path, RESULT, PRESETS["tiny"])
    with pytest.raises(TandemError) as caught:
        run(tmp_path, "--scheme", "w8a8", "--prompts", __file__)
    assert caught.value.reason == "TAG_EXISTS"
