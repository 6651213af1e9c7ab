"""Fetch the packages that a GPU machine without a network needs.

They are those of constraints.txt, for Python 3.12 on Linux x86-64. torch, Triton and numpy are not among them: such a
machine has its own.
"""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_check.installing import REPOSITORY, RTX_WHEELS, WHEEL_PYTHON, WHEELS

NAMES = (
    # The services.
    "grpcio", "grpcio-status", "grpcio-health-checking", "grpcio-reflection", "protobuf", "googleapis-common-protos",
    "pydantic", "pydantic_core", "pydantic-settings", "annotated-types", "typing_extensions", "typing-inspection",
    "python-dotenv", "structlog", "prometheus_client", "uvloop", "pillow", "Jinja2", "MarkupSafe", "tokenizers",
    "llguidance", "safetensors", "redis", "ahocorasick_rs",
    # The command and the tables.
    "typer", "click", "shellingham", "annotated-doc", "rich", "markdown-it-py", "mdurl", "Pygments",
    # The tests.
    "pytest", "pytest-asyncio", "pytest-timeout", "pluggy", "iniconfig", "packaging", "hypothesis", "sortedcontainers",
)  # fmt: skip
RTX = ("tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116")
RTX_SOURCES = ("tensorrt-rtx-cu13==1.7.1.116", "tensorrt-rtx==1.7.1.116")  # of plain Python, published as sources
MAX_BYTES = 60 * 2**20  # small enough to travel with the repository
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12, 5)]
_PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def pinned(names: tuple[str, ...]) -> list[str]:
    """Return `name==version` of each package, from constraints.txt.

    Raises:
        SystemExit: a package is not there.
    """
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = {_plain(line.partition("==")[0]): line for line in lines if "==" in line and not line.startswith("#")}
    if missing := [name for name in names if _plain(name) not in versions]:
        raise SystemExit(f"constraints.txt has no version of {', '.join(missing)}")
    return [versions[_plain(name)] for name in names]


def fetch(requirements: list[str], folder: Path) -> int:
    """Replace the wheels of a folder. Returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", ".".join(map(str, WHEEL_PYTHON))]
    command += [option for platform in _PLATFORMS for option in ("--platform", platform)]
    subprocess.run([*command, "--dest", str(folder), *requirements], check=True)
    return sum(path.stat().st_size for path in folder.glob("*.whl"))


def main(arguments: list[str]) -> None:
    """Fetch the wheels, with `--rtx` TensorRT for RTX as well."""
    size = fetch(pinned(NAMES), WHEELS)
    print(f"{len(NAMES)} wheels, {size / 2**20:.1f} MiB, are in {WHEELS.relative_to(REPOSITORY)}.")
    if size > MAX_BYTES:
        raise SystemExit(f"That is more than the {MAX_BYTES / 2**20:.0f} MiB that may travel.")
    if "--rtx" in arguments:
        fetch(list(RTX), RTX_WHEELS)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*build, "--wheel-dir", str(RTX_WHEELS), *RTX_SOURCES], check=True)
        size = sum(path.stat().st_size for path in RTX_WHEELS.glob("*.whl"))
        print(f"TensorRT for RTX, {size / 2**20:.1f} MiB, is in {RTX_WHEELS.relative_to(REPOSITORY)}.")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main(sys.argv[1:])
