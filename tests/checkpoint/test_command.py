"""`tandem checkpoint` as a person runs it, without the process around it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chassis.errors import TandemError
from tandem.commands.checkpoint import app


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


def test_names_of_files_are_shown_as_they_are(tmp_path: Path) -> None:
    """Square brackets are markup to what draws the tables."""
    models = tmp_path / "[/red]"
    assert str(models / "a-v1.0.0") in run("new", "--preset", "tiny", "--tag", "a-v1.0.0", "--models", models)
    (models / "a-v1.0.0" / "[red].txt").touch()
    assert "[red].txt" in CliRunner().invoke(app, ["verify", "a-v1.0.0", "--models", str(models)]).stdout


def test_a_checkpoint_that_does_not_verify_says_so_after_the_table(tmp_path: Path) -> None:
    run("new", "--preset", "tiny", "--tag", "a-v1.0.0", "--models", tmp_path)
    (tmp_path / "a-v1.0.0" / "config.json").write_text("{}")
    assert "config.json was changed" in refused("verify", "a-v1.0.0", "--models", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "a-v1.0.0"], "no a-v1.0.0"),
        (["verify", "nonsense"], "is not a tag"),
        (["new", "--preset", "tiny", "--tag", "x"], "is not a tag"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments, "--models", tmp_path)
