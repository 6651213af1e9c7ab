"""`tandem checkpoint export --probes` with the demo's release on real stacks."""

import re
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import typer
from typer.testing import CliRunner

from checkpoint.manifest import manifest_text, read_manifest
from checkpoint.probes import PROBES_FILE, Judged, Verdict, Verdicts
from checkpoint.release_probes import add_probes
from tandem.commands.checkpoint import app
from tandem.commands.probe_answers import compare
from tandem.errors import FailedPrecondition
from tests.checkpoint.probes.files import probe
from tests.vision_service.exports import TAGS, checkpoint
from tests.vision_service.openvino_processor import needs_bfloat16

DEMO = Path(__file__).parents[2] / "models" / "tandem-demo-v1.1.0"
NUM_PROBES = 24


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return the demo's release with few of its probes."""
    folder = tmp_path / "models" / DEMO.name
    copytree(DEMO, folder, ignore=ignore_patterns("exports", PROBES_FILE))
    manifest = read_manifest(DEMO)
    files = {name: digest for name, digest in manifest.files.items() if name != PROBES_FILE}
    (folder / "manifest.json").write_text(manifest_text(manifest.model_copy(update={"files": files})))
    lines = (DEMO / PROBES_FILE).read_text(encoding="utf-8").splitlines()
    ends = [number for number, line in enumerate(lines, 1) if '"judge"' in line]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines[: ends[NUM_PROBES - 1]]), encoding="utf-8")
    assert len(add_probes(folder, tmp_path / "mine.jsonl").probes) == NUM_PROBES
    return folder.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "precision"), [("onnx", "float32"), pytest.param("openvino", "bfloat16", marks=needs_bfloat16)]
)
def test_an_export_answers_the_probes_as_its_source_does(models: Path, to: str, precision: str) -> None:
    shown = run("export", DEMO.name, "--to", to, "--precision", precision, "--models", models, "--probes")
    said = re.search(
        r"Of (\d+) probes, the export loses (\d+) and gains (\d+) against torch: a drop of -?\d\.\d points, "
        r"95 % interval (-\d+\.\d) to (\d+\.\d)\.",
        shown,
    )
    assert said is not None, shown
    total, lost, gained = map(int, said.groups()[:3])
    assert total == NUM_PROBES
    assert lost <= 1
    assert gained <= 1
    assert -100 < float(said[4]) < 0 < float(said[5]) < 100


def test_a_release_without_probes_is_refused_before_the_export(tmp_path: Path) -> None:
    copytree(checkpoint("resampler"), tmp_path / TAGS["resampler"], ignore=ignore_patterns("exports"))
    with pytest.raises(FailedPrecondition, match="has no probes"):
        run("export", TAGS["resampler"], "--to", "onnx", "--precision", "float32", "--models", tmp_path, "--probes")
    assert not (tmp_path / TAGS["resampler"] / "exports").exists()


def test_an_engine_or_a_repository_cannot_answer(tmp_path: Path) -> None:
    command = [
        "export",
        DEMO.name,
        "--to",
        "triton-repository",
        str(tmp_path),
        "--probes",
        "--models",
        str(DEMO.parent),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == typer.BadParameter("").exit_code
    assert "onnx or openvino" in " ".join(result.output.split())


def test_the_sentence_has_the_lost_probes_and_those_without_verdict() -> None:
    asked = [probe(id=f"p{number}", max_tokens=1 + number) for number in range(50)]

    def verdicts(wrong: int, unjudged: int) -> Verdicts:
        values: list[Verdict] = ["wrong" if number < wrong else "right" for number in range(50)]
        values[50 - unjudged :] = ["unjudged"] * unjudged
        return Verdicts(Judged(one, "", verdict) for one, verdict in zip(asked, values, strict=True))

    sentence = compare(verdicts(0, 0), verdicts(7, 3)).sentence("b", "a")
    assert sentence.startswith("Of 47 probes, b loses 7 and gains 0 against a: a drop of 14.9 points, 95 % interval ")
    assert sentence.endswith(" 3 more have no verdict. Lost: p0, p1, p2, p3, p4 and 2 more.")
