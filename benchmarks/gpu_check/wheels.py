"""Fetch the packages that a GPU machine without a network needs.

They are those of constraints.txt, for Python 3.12 on Linux x86-64. torch, Triton and numpy are not among them: such a
machine has its own.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.gpu_check.installing import REPOSITORY, RTX_WHEELS, WHEEL_PYTHON, WHEELS

EXTRAS = ("stages", "gateway")  # of this project, with all that they need
TESTS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis")
_OWN = {"torch", "numpy", "triton"}  # of the machine, with all that they need
RTX = ("tensorrt-rtx-cu13-libs==1.7.1.116", "tensorrt-rtx-cu13-bindings==1.7.1.116")
RTX_SOURCES = ("tensorrt-rtx-cu13==1.7.1.116", "tensorrt-rtx==1.7.1.116")  # of plain Python, published as sources
MAX_BYTES = 60 * 2**20  # small enough to travel with the repository
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17, 12, 5)]
_PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]


def needed() -> list[str]:
    """Return the packages that the checks need, sorted."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    left = [Requirement(f"{project['name']}[{','.join(EXTRAS)}]"), *map(Requirement, TESTS)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        package = left.pop()
        name, extras = _plain(package.name), frozenset(package.extras)
        if name in _OWN or (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name == project["name"]:  # not from its metadata, which may be those of an older version
            left += map(Requirement, project["dependencies"])
            left += [Requirement(line) for extra in extras for line in project["optional-dependencies"][extra]]
        else:
            left += _requirements(package.name, extras)
    return sorted({name for name, _ in seen} - {project["name"]})


def _requirements(name: str, extras: Iterable[str]) -> list[Requirement]:
    """Return what an installed package needs on the GPU machine."""
    environments = [{"extra": extra, "python_version": ".".join(map(str, WHEEL_PYTHON))} for extra in ("", *extras)]
    lines = [Requirement(line) for line in requires(name) or ()]
    return [line for line in lines if line.marker is None or any(map(line.marker.evaluate, environments))]


def pinned(names: Iterable[str]) -> list[str]:
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
    names = needed()
    size = fetch(pinned(names), WHEELS)
    print(f"{len(names)} wheels, {size / 2**20:.1f} MiB, are in {WHEELS.relative_to(REPOSITORY)}.")
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
