"""Install the wheel folder beside the machine's own packages.

Needs the standard library only. The wheels go to a folder of their own, which comes first on the path, so the machine's
torch is used and nothing of it changes. A virtual environment would not see a torch that is in one itself.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".gpu"  # ignored by git
WHEELS = FOLDER / "wheels"
RTX_WHEELS = FOLDER / "rtx-wheels"
SITE = FOLDER / "site"
WHEEL_PYTHON = (3, 12)  # of the wheels


def install(*, wheels: tuple[Path, ...] = (WHEELS, RTX_WHEELS), site: Path = SITE) -> str:
    """Install all wheels that fit this Python.

    Returns one sentence about it.
    """
    files = sorted(path for folder in wheels for path in folder.glob("*.whl"))
    if not files:
        return "No wheels in .gpu/wheels: `make gpu-wheels` fetches them. Installed packages are used."
    if sys.version_info[:2] != WHEEL_PYTHON:
        return f"The wheels are for Python {WHEEL_PYTHON[0]}.{WHEEL_PYTHON[1]}, so installed packages are used."
    names = "\n".join(path.name for path in files)
    marker = site / "wheels.txt"
    if marker.exists() and marker.read_text() == names:
        return f"{len(files)} wheels are installed in {site}."
    shutil.rmtree(site, ignore_errors=True)
    refused = [] if _pip(files, site) else [path.name for path in files if not _pip([path], site)]
    if refused:
        return f"{len(files) - len(refused)} wheels are installed in {site}. pip refused {', '.join(refused)}."
    marker.write_text(names)
    return f"{len(files)} wheels are installed in {site}."


def _pip(files: Sequence[Path], site: Path) -> bool:
    """Install wheels. Returns whether pip took them."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(site)]
    return subprocess.run([*command, *map(str, files)], check=False).returncode == 0
