"""A stage is built again only when its inputs change."""

import re
import shutil
from pathlib import Path

import pytest

from images.stages import Builder

REPOSITORY = Path(__file__).parents[2]
ARGUMENTS = {"BASE": "debian:bookworm-slim", "VARIANT": "cpu", "VERSION": "0.1.0"}
SBOM = {"service-sbom", "stage-sbom", "vllm-sbom"}
IMAGES = {"gateway", "http", "vision", "language", "language-vllm"}
CODE = IMAGES | SBOM | {"code", "service-code", "stage-code", "vllm-code"}
VLLM = {"vllm", "vllm-code", "vllm-sbom", "language-vllm"}
STAGES = {"stage-code", "stage-sbom", "vision", "language"}
MODELS = {"models", "models-copy"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the files of the images."""
    folder = tmp_path_factory.mktemp("original") / "repository"
    folder.mkdir()
    listed = (REPOSITORY / ".dockerignore").read_text().splitlines()
    for name in (".dockerignore", *(line[1:] for line in listed if line.startswith("!"))):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """Return another copy, to change."""
    return shutil.copytree(original, tmp_path / "copy")


def names(folder: Path, **arguments: str) -> dict[str, str]:
    """Return the names of all stages' images."""
    # The program lists no image, so none exists.
    builder = Builder(folder / "images" / "Dockerfile", folder, ARGUMENTS | arguments, ["true"])
    return {stage: builder.name(stage) for stage in builder.stages}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage, name in after.items() if before[stage] != name}


def test_another_folder_with_the_same_files_has_the_same_images(original: Path, copy: Path) -> None:
    (copy / "gateway" / "__pycache__").mkdir()
    (copy / "gateway" / "__pycache__" / "service.pyc").write_bytes(b"other")
    (copy / "vision_service" / "kernels" / "_native.so").write_bytes(b"other")
    assert changed(names(original), names(copy)) == set()


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("gateway/service.py", CODE),
        ("README.md", CODE),
        ("models/tandem-demo-v1.1.0/config.json", MODELS),
        ("language_service/kernels/tile.h", CODE | {"kernels"}),
        ("images/sbom.py", IMAGES | SBOM | {"sbom"}),
        ("images/sbom.txt", IMAGES | SBOM | {"sbom"}),
        ("constraints.txt", CODE - VLLM - {"code"} | {"packages", "service", "torch", "stage"}),
        ("benchmarks/peers/vllm.txt", VLLM),
    ],
)
def test_a_changed_file_rebuilds_its_stages_alone(file: str, stages: set[str], original: Path, copy: Path) -> None:
    with (copy / file).open("a") as changing:
        changing.write("\n")
    assert changed(names(original), names(copy)) == stages


def test_dependencies_are_installed_again_only_when_they_change(original: Path, copy: Path) -> None:
    pyproject = copy / "pyproject.toml"
    text = pyproject.read_text()
    pyproject.write_text(text.replace("line-length = 120", "line-length = 100"))
    assert changed(names(original), names(copy)) == CODE
    pyproject.write_text(re.sub(r"^dev = \[$", 'another = ["absent>=1"]\ndev = [', text, flags=re.MULTILINE))
    assert changed(names(original), names(copy)) == CODE
    pyproject.write_text(text.replace('"rich>=15"', '"rich>=15.1"'))
    rebuilt = changed(names(original), names(copy))
    assert rebuilt >= {"packages", "torch", "gateway", "http", "vision", "language", "vllm", "language-vllm"}


def test_the_commit_changes_no_image_but_the_variant_does(original: Path) -> None:
    before = names(original)
    assert changed(before, names(original, REVISION="abc")) == set()
    assert changed(before, names(original, VARIANT="cuda")) == {"torch", "stage"} | STAGES | VLLM
    assert changed(before, names(original, BASE="debian:trixie-slim")) == before.keys() - {"models"}
