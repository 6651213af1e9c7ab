"""The Makefile needs only Python and a shell."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MAKE = shutil.which("make") or "make"
# Makes an environment whose pip prints a line and its arguments, and fails if PIP_FAILS is set.
FAKE_PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    printf '#!/bin/sh\\necho "pip: $*"\\necho "$*" >>pip_calls\\n' >.venv/bin/pip
    printf 'case "$*" in *--require-hashes*) exit ${HASHES_DIFFER:-0};; esac\\nexit $PIP_FAILS\\n' >>.venv/bin/pip
    chmod +x .venv/bin/pip
elif echo "$*" | grep -q get_platform; then
    echo fake-cp312
elif [ -n "$INDEX_IS_AWAY" ] && echo "$*" | grep -q urlopen; then
    echo "Traceback" >&2
    exit 1
fi
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the Makefile and a fake Python."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3.12"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    for name in ("chmod", "cp", "grep", "mkdir", "rm", "sed", "tail", "touch", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def write_lock(checkout: Path) -> None:
    (checkout / "locks").mkdir()
    (checkout / "locks" / "fake-cp312.txt").write_text("torch==2.13.0 --hash=sha256:00\n")


def make(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout / "bin"), "PIP_FAILS": "0", **variables}
    return subprocess.run([MAKE, *arguments], cwd=checkout, capture_output=True, encoding="utf-8", env=environment)


def test_make_without_a_target_lists_all_targets(checkout: Path) -> None:
    listed = re.findall(r"^make (\S+) +\w", make(checkout).stdout, re.MULTILINE)
    makefile = (REPOSITORY / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (help .*)", makefile, re.MULTILINE)
    (markers,) = re.findall(r"^SEPARATE := (.*)", makefile, re.MULTILINE)
    separate = {f"test-{marker}" for marker in markers.split()}
    assert set(listed) == {*targets.split(), *separate, "bench-NAME"} - {"$(SEPARATE:%=test-%)"}


def test_the_next_newer_python_is_taken_and_only_one_line_is_printed(checkout: Path) -> None:
    done = make(checkout, ".venv/ready")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Setting up \.venv: .* takes up to two minutes\.\n", done.stdout)
    torch, rest = (checkout / "pip_calls").read_text().splitlines()
    assert "--extra-index-url https://download.pytorch.org/whl/cpu torch" in torch
    assert "--extra-index-url" not in rest


def test_without_the_index_for_cpus_torch_comes_from_the_usual_one(checkout: Path) -> None:
    done = make(checkout, ".venv/ready", INDEX_IS_AWAY="1")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert "--extra-index-url" not in (checkout / "pip_calls").read_text()


def test_a_failed_installation_shows_the_output_of_pip(checkout: Path) -> None:
    done = make(checkout, ".venv/ready", PIP_FAILS="1")
    assert done.returncode != 0
    assert "pip: install" in done.stderr
    assert not (checkout / ".venv" / "ready").exists()


def test_a_locked_platform_installs_by_hashes_alone(checkout: Path) -> None:
    write_lock(checkout)
    done = make(checkout, ".venv/ready")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    packages, project = (checkout / "pip_calls").read_text().splitlines()
    assert "--require-hashes --no-deps --extra-index-url" in packages
    assert packages.endswith("--requirement locks/fake-cp312.txt")
    assert project.endswith("--no-deps --no-build-isolation --editable .")


def test_an_index_with_other_files_is_told_or_stops(checkout: Path) -> None:
    write_lock(checkout)
    done = make(checkout, ".venv/ready", HASHES_DIFFER="1", HASHES="only")
    assert done.returncode != 0
    assert "--require-hashes" in done.stderr
    done = make(checkout, ".venv/ready", HASHES_DIFFER="1")
    assert done.returncode == 0
    assert "Packages differ from locks/fake-cp312.txt. They are installed without hashes." in done.stdout
    assert (checkout / "pip_calls").read_text().splitlines()[-1].endswith("--editable .[all,dev]")


def test_an_environment_whose_python_is_gone_is_made_again(checkout: Path) -> None:
    make(checkout, ".venv/ready")
    assert make(checkout, ".venv/ready").stdout == "make: '.venv/ready' is up to date.\n"
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/gone/python3.12")
    done = make(checkout, ".venv/ready")
    assert done.returncode == 0
    assert "The Python of .venv is gone, so .venv is made again." in done.stdout
    assert os.access(python, os.X_OK)


def test_without_any_python_a_sentence_says_what_to_install(checkout: Path) -> None:
    (checkout / "bin" / "python3.12").unlink()
    done = make(checkout, "demo")
    assert done.returncode != 0
    assert "Install Python 3.11 or newer, with its venv module" in done.stderr
    assert done.stdout == ""
