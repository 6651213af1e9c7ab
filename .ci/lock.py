"""Write the lock of every platform: `make lock`.

constraints.txt pins all versions. So pip only finds the files of these versions for a platform, and dependencies are
followed here: pip evaluates their markers for the Python that runs it, not for the platform that it is asked about.
"""

import functools
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from images.requirements import requirements

REPOSITORY = Path(__file__).parents[1]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
HEADER = "# Every package for `make` on this platform, with the SHA-256 of its file. `make lock` writes this.\n"
TOOLS = "# Builds and tests. No user installs these.\n"
_GLIBC = range(36, 16, -1)  # minor versions whose wheels Debian 12 takes, the newest first
_PATCHES = range(12)  # releases of a Python: some packages are for the first ones only
_parse = functools.cache(Requirement)
_NOT_FOUND = re.compile(r"No matching distribution found for ([^\s=]+)==")


@dataclass(frozen=True)
class Platform:
    """A Python on a kind of processor, with Linux."""

    python: str  # 3.12
    machine: str  # x86_64

    @property
    def name(self) -> str:
        """The name of its lock."""
        return f"linux-{self.machine}-{self.tag}"

    @property
    def tag(self) -> str:
        """CPython's tag in names of wheels."""
        return f"cp{self.python.replace('.', '')}"

    @property
    def wheels(self) -> list[str]:
        """The platform tags of its wheels, the best first."""
        return [*(f"manylinux_2_{minor}_{self.machine}" for minor in _GLIBC), f"manylinux2014_{self.machine}"]

    def markers(self, patch: int) -> dict[str, str]:
        """Return the values of markers on a release of this Python."""
        full = f"{self.python}.{patch}"
        return {
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": self.python,
            "sys_platform": "linux",
        }


PLATFORMS = [
    Platform(python, machine) for python in ("3.11", "3.12", "3.13", "3.14") for machine in ("x86_64", "aarch64")
]


@dataclass(frozen=True)
class Package:
    """A file of a package, as pip's report describes it."""

    name: str
    version: str
    sha256: str
    requires: Sequence[str]

    @classmethod
    def from_report(cls, item: Mapping[str, Any]) -> "Package":
        """Read an item of `install`."""
        metadata = item["metadata"]
        sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
        return cls(metadata["name"], metadata["version"], sha256, metadata.get("requires_dist", []))

    def line(self, marker: str) -> str:
        """Return the requirement with its hash."""
        return f"{self.name}=={self.version}{marker} --hash=sha256:{self.sha256}\n"


def reached(roots: Sequence[str], packages: Mapping[str, Package], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the names of packages that an environment needs.

    Args:
        roots: requirements.
        packages: those that exist, by normalized name. Others are yielded, and not followed.
        environment: values of markers.
    """
    waiting = [_parse(one) for one in roots]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        new = {(name, extra) for extra in ("", *requirement.extras)} - seen
        seen |= new
        if (name, "") in new:
            yield name
        if name in packages:
            if not requirement.specifier.contains(packages[name].version, prereleases=True):
                raise SystemExit(f"constraints.txt has {name} {packages[name].version}, but {requirement} is needed.")
            waiting += _followed(packages[name], {extra for _, extra in new}, environment)


def _followed(package: Package, extras: set[str], environment: Mapping[str, str]) -> Iterator[Requirement]:
    for requirement in map(_parse, package.requires):
        marker = requirement.marker
        if any(marker is None or marker.evaluate({**environment, "extra": extra}) for extra in extras):
            yield requirement


def find(pins: Sequence[str], platform: Platform) -> dict[str, Package]:
    """Return the packages that have a wheel for a platform."""
    pins = list(pins)
    flags = [word for one in platform.wheels for word in ("--platform", one)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        command += ["--only-binary", ":all:", "--target", folder, "--report", str(report)]
        command += ["--python-version", platform.python, *flags]
        while (done := subprocess.run([*command, *pins], stderr=subprocess.PIPE, encoding="utf-8")).returncode:
            missing = _NOT_FOUND.search(done.stderr)
            if not missing:
                raise SystemExit(done.stderr)
            pins = [pin for pin in pins if not pin.startswith(f"{missing[1]}==")]
        found = [Package.from_report(item) for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {canonicalize_name(one.name): one for one in found}


def cpu_torch(found: Package, platform: Platform, packages: Mapping[str, Package]) -> Package:
    """Return torch's build for processors, with the hash that its index lists.

    Pip may have found PyPI's build, which also requires CUDA: constraints.txt names no package of CUDA.
    """
    build = f"{found.version.split('+')[0]}+cpu"
    wheel = f"torch-{build}-{platform.tag}-{platform.tag}-manylinux_2_28_{platform.machine}.whl"
    listed = (REPOSITORY / "locks" / "torch.sha256").read_text(encoding="utf-8").splitlines()
    hashes = {name: sha256 for sha256, name in (line.split("  ") for line in listed)}
    if wheel not in hashes:
        raise SystemExit(f"Add the SHA-256 of {wheel} to locks/torch.sha256: {TORCH_INDEX}/torch/ lists it.")
    requires = [one for one in found.requires if canonicalize_name(Requirement(one).name) in packages]
    return Package("torch", build, hashes[wheel], requires)


def needed(roots: Sequence[str], packages: Mapping[str, Package], platform: Platform) -> dict[str, str]:
    """Return the names of needed packages, with their markers.

    Most have none.
    """
    patches = Counter(name for patch in _PATCHES for name in reached(roots, packages, platform.markers(patch)))
    return {
        name: "" if count == len(_PATCHES) else f' ; python_full_version < "{platform.python}.{count}"'
        for name, count in patches.items()
    }


def lock(used: Sequence[str], tools: Sequence[str], pins: Sequence[str], platform: Platform) -> str:
    """Return the lock of a platform.

    Args:
        used: requirements that users install.
        tools: requirements of builds and tests.
        pins: every package with its version.
        platform: the platform.

    Raises:
        SystemExit: the platform needs a package that has no wheel for it, or that constraints.txt does not name.
    """
    packages = find(pins, platform)
    packages["torch"] = cpu_torch(packages["torch"], platform, packages)
    markers = needed([*used, *tools], packages, platform)
    if missing := sorted(markers.keys() - packages.keys()):
        raise SystemExit(f"{platform.name} needs {', '.join(missing)}: no wheel, or not in constraints.txt.")
    lines = {name: packages[name].line(markers[name]) for name in markers}
    first = needed(used, packages, platform)
    parts = [sorted((lines[name] for name in names), key=str.lower) for names in (first, lines.keys() - first.keys())]
    return HEADER + "".join(parts[0]) + TOOLS + "".join(parts[1])


def main() -> None:
    """Write all locks."""
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    builds = pyproject["build-system"]["requires"]
    used = requirements(pyproject["project"], ["all"])
    tools = [*requirements(pyproject["project"], ["dev"]), *builds]
    pinned = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [*(line for line in pinned if not line.startswith("#")), *builds]
    for platform in PLATFORMS:
        print(f"locking {platform.name}", flush=True)
        (REPOSITORY / "locks" / f"{platform.name}.txt").write_text(lock(used, tools, pins, platform), encoding="utf-8")


if __name__ == "__main__":
    main()
