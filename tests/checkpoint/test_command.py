"""`tandem checkpoint` inside this process."""

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chassis.errors import TandemError
from checkpoint.manifest import read_manifest
from checkpoint.presets import PRESETS
from tandem.commands.checkpoint import Preset, app


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    with pytest.raises(TandemError) as caught:
        run(*arguments)
    return caught.value.message


def test_a_checkpoint_is_made_verified_inspected_and_packed(tmp_path: Path) -> None:
    run("new", "--preset", "tiny", "--tag", "a-v1.0.0", "--models", tmp_path, "--shards", 2, "--format", "bin")
    assert run("verify", "a-v1.0.0", "--models", tmp_path).count("as in the manifest") == 8
    folder = tmp_path / "a-v1.0.0"
    run("pack", folder, "--tag", "b-v1.0.0", "--config", folder / "config.json", "--models", tmp_path)
    facts = [json.loads(run("inspect", tag, "--json", "--models", tmp_path)) for tag in ("a-v1.0.0", "b-v1.0.0")]
    assert facts[0]["query"] == facts[1]["query"]
    assert facts[0]["num_parameters"] == facts[1]["num_parameters"] > 0


def test_the_full_size_preset_is_shown_without_weights() -> None:
    shown = run("inspect", "--preset", "qwen3-vl-8b")
    for fact in (
        "language_model.layers.N.self_attn.q_proj.weight",
        "6,676,012,032",
        "perceiver_resampler.query  32 x 1024",
        "GQA 4 to 1",
        "saves 622,329,856 parameters",
        "13.35 GB",
        "131,072 bytes a token",
    ):
        assert fact in shown


def test_a_released_shape_is_shown_with_its_images() -> None:
    shown = run("inspect", "--preset", "qwen3-vl-2b-instruct")
    for fact in (
        "visual.deepstack_merger_list.N.linear_fc2.weight",
        "2,127,532,032",
        "4 levels x 2048",
        "114,688 bytes a token",
    ):
        assert fact in shown
    rows = re.findall(r"(\d+) x (\d+) │ +([\d,]+) │ +([\d,]+)", shown)
    assert rows == [
        ("256", "256", "64", "1,048,576"),
        ("512", "512", "256", "4,194,304"),
        ("640", "480", "300", "4,915,200"),
        ("1024", "1024", "1,024", "16,777,216"),
        ("1920", "1080", "2,040", "33,423,360"),
    ]


def test_a_hub_folder_is_imported_verified_and_inspected(released: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import", str(released), "--tag", "a-v1.0.0", "--models", str(tmp_path)])
    assert done.exit_code == 0, done.output
    shown = done.stdout.splitlines()
    assert shown[0] == f"imported {tmp_path / 'a-v1.0.0'}"
    facts = {line[:15].strip(): line[15:].strip() for line in shown[1:]}
    assert facts["kind"] == "qwen3_vl"
    assert facts["weights"] == "1.64 MB, files: 9 linked"
    assert facts["sampling"] == "temperature 0.7, top_k 20, top_p 0.8"
    assert done.stderr.splitlines() == [f"hashed {path.name}" for path in sorted(released.glob("*.safetensors"))]
    assert run("verify", "a-v1.0.0", "--models", tmp_path).count("as in the manifest") == 15
    assert "temperature 0.7, top_k 20, top_p 0.8" in run("inspect", "a-v1.0.0", "--models", tmp_path)
    assert run("tags", "--models", tmp_path).splitlines()[1].split()[:2] == ["a-v1.0.0", "qwen3_vl"]


def test_an_interrupted_import_goes_on_with_the_same_command(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    command = ["import", str(released), "--tag", "a-v1.0.0", "--models", str(tmp_path), "--copy"]
    with monkeypatch.context() as patched:
        patched.setattr("checkpoint.importing.hash_file", interrupt)
        done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr == "\nInterrupted. The same command goes on from here.\n"
    assert "files: 9 copied" in CliRunner().invoke(app, command).stdout


def test_an_import_in_a_terminal_shows_files_bytes_and_the_time_left(released: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tandem", "checkpoint", "import", str(released)]
    command += ["--tag", "a-v1.0.0", "--models", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end of a terminal
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert process.wait(60) == 0
    assert re.search(rb"model-0000\d-of-00009\.safetensors.*file \d of 9.*MB.*:", shown)


def test_file_names_with_markup_are_printed_unchanged(tmp_path: Path) -> None:
    """Rich reads square brackets as markup."""
    models = tmp_path / "[/red]"
    assert str(models / "a-v1.0.0") in run("new", "--preset", "tiny", "--tag", "a-v1.0.0", "--models", models)
    (models / "a-v1.0.0" / "[red].txt").touch()
    assert "[red].txt" in CliRunner().invoke(app, ["verify", "a-v1.0.0", "--models", str(models)]).stdout


def test_a_failed_verification_is_an_error_after_the_table(tmp_path: Path) -> None:
    run("new", "--preset", "tiny", "--tag", "a-v1.0.0", "--models", tmp_path)
    (tmp_path / "a-v1.0.0" / "config.json").write_text("{}")
    assert "config.json was changed" in refused("verify", "a-v1.0.0", "--models", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "a-v1.0.0"], "no a-v1.0.0"),
        (["verify", "nonsense"], "is not a tag"),
        (["import", "nothing", "--tag", "a-v1.0.0"], "no folder nothing"),
        (["import", "nothing", "--tag", "x"], "is not a tag"),
        (["new", "--preset", "tiny", "--tag", "x"], "is not a tag"),
    ],
)
def test_user_errors_are_named(tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in refused(*arguments, "--models", tmp_path)


def test_tags_lists_every_checkpoint_of_a_store(tmp_path: Path) -> None:
    for tag in ("b-v1.0.0", "a-v1.10.0", "a-v1.9.0"):
        run("new", "--preset", "tiny", "--tag", tag, "--models", tmp_path)
    rows = [line.split() for line in run("tags", "--models", tmp_path).splitlines()[1:]]
    assert [row[0] for row in rows] == ["a-v1.9.0", "a-v1.10.0", "b-v1.0.0"]
    manifest = read_manifest(tmp_path / "b-v1.0.0")
    assert rows[2][1:5] == ["resampler", "-", "146", "K"]
    assert rows[2][-2:] == [manifest.vision.digest.hex()[:12], manifest.language.digest.hex()[:12]]
    [_, _, facts] = json.loads(run("tags", "--json", "--models", tmp_path))
    assert facts["language_digest"] == manifest.language.digest.hex()
    assert facts["num_bytes"] == sum(path.stat().st_size for path in (tmp_path / "b-v1.0.0").iterdir())
    assert facts["num_files"] == len(manifest.files) + 1


def test_tags_lists_a_broken_checkpoint_with_its_problem(tmp_path: Path) -> None:
    run("new", "--preset", "tiny", "--tag", "a-v1.0.0", "--models", tmp_path)
    (tmp_path / "b-v1.0.0").mkdir()
    first, second = run("tags", "--models", tmp_path).splitlines()[1:]
    assert first.split()[:2] == ["a-v1.0.0", "resampler"]
    assert "no readable manifest.json" in second


def test_tags_of_an_empty_store_say_how_to_make_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["tags", "--models", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"No checkpoint in {tmp_path}; `tandem checkpoint new` makes one.\n"


def test_help_names_every_preset() -> None:
    assert {preset.value for preset in Preset} == set(PRESETS)
