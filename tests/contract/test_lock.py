"""Each platform's lock has the packages that it needs, with hashes."""

import importlib.util
import re
import sys
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from images.requirements import requirements

REPOSITORY = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    """Import a program whose folder is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


locking: Any = load(REPOSITORY / ".ci" / "lock.py")
PLATFORMS = {platform.name: platform for platform in locking.PLATFORMS}
OLD = locking.Platform("3.11", "x86_64")
NEW = locking.Platform("3.12", "aarch64")


def lines(name: str) -> list[str]:
    text = (REPOSITORY / "locks" / f"{name}.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


def locked(name: str) -> dict[str, Requirement]:
    found = [Requirement(line.partition(" --hash")[0]) for line in lines(name)]
    return {canonicalize_name(one.name): one for one in found}


def constraints() -> dict[str, str]:
    text = (REPOSITORY / "constraints.txt").read_text()
    pairs = [line.split("==") for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def package(name: str, *requires: str, version: str = "1.0") -> Any:
    return locking.Package(name, version, "00", requires)


def reached(roots: list[str], *packages: Any, platform: Any = NEW, patch: int = 5) -> set[str]:
    known = {canonicalize_name(one.name): one for one in packages}
    return set(locking.reached(roots, known, platform.markers(patch)))


def test_each_platform_has_a_lock() -> None:
    assert {path.stem for path in (REPOSITORY / "locks").glob("*.txt")} == PLATFORMS.keys()
    assert {
        "linux-x86_64-cp311",
        "linux-aarch64-cp311",
        "linux-x86_64-cp312",
        "linux-aarch64-cp312",
    } <= PLATFORMS.keys()


@pytest.mark.parametrize("name", PLATFORMS)
def test_each_line_has_a_hash(name: str) -> None:
    line = r'\S+==\S+( ; python_full_version < "[0-9.]+")? --hash=sha256:[0-9a-f]{64}'
    assert all(re.fullmatch(line, one) for one in lines(name))
    assert len(lines(name)) == len(locked(name))


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_lock_has_the_versions_of_the_constraints(name: str) -> None:
    """Run `make lock` after a change of them."""
    for package_name, requirement in locked(name).items():
        (version,) = (one.version.split("+")[0] for one in requirement.specifier)
        assert version == constraints().get(package_name, version if package_name == "setuptools" else None)


def test_the_constraints_name_nothing_that_no_platform_needs() -> None:
    assert {one for name in PLATFORMS for one in locked(name)} == {*constraints(), "setuptools"}


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_lock_has_what_the_installed_packages_need_there(name: str) -> None:
    """Metadata are the same everywhere. Their markers tell platforms apart."""
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    roots = [*requirements(pyproject["project"], ["all", "dev"]), *pyproject["build-system"]["requires"]]
    installed: dict[str, Any] = {
        canonicalize_name(one.metadata["Name"]): package(one.name, *(one.requires or []), version=one.version)
        for one in distributions()
    }
    installed["torch"] = locking.cpu_torch(installed["torch"], PLATFORMS[name], constraints() | {"setuptools": ""})
    needed = locking.needed(roots, installed, PLATFORMS[name])
    markers = {one: f" ; {found.marker}" if found.marker else "" for one, found in locked(name).items()}
    assert markers == needed


@pytest.mark.parametrize("name", PLATFORMS)
def test_what_users_install_stands_first(name: str) -> None:
    """`make sbom` lists the lines before the second comment."""
    begin = locking.TOOLS.partition(".")[0]
    assert f"sed '/^{begin}/,$$d'" in (REPOSITORY / "Makefile").read_text()
    used, tools = (REPOSITORY / "locks" / f"{name}.txt").read_text().split(locking.TOOLS)
    assert all(f"\n{one}==" in used for one in ("torch", "grpcio", "redis", "starlette"))
    assert all(f"\n{one}==" in f"\n{tools}" for one in ("pytest", "mypy", "transformers"))


@pytest.mark.parametrize("name", PLATFORMS)
def test_torch_has_the_hash_of_its_build_for_processors(name: str) -> None:
    (line,) = (one for one in lines(name) if one.startswith("torch=="))
    version, sha256 = re.fullmatch(r"torch==(\S+) --hash=sha256:(\S+)", line).groups()  # type: ignore[union-attr]
    machine, tag = name.split("-")[1:]
    wheel = f"torch-{version}-{tag}-{tag}-manylinux_2_28_{machine}.whl"
    assert f"{sha256}  {wheel}" in (REPOSITORY / "locks" / "torch.sha256").read_text().splitlines()
    assert version.endswith("+cpu")


def test_another_version_of_torch_asks_for_its_hashes() -> None:
    with pytest.raises(
        SystemExit, match=r"Add the SHA-256 of torch-9.0\+cpu-cp312-.*aarch64.whl to locks/torch.sha256"
    ):
        locking.cpu_torch(package("torch", version="9.0"), NEW, {})


def test_pypis_torch_adds_no_package_of_cuda() -> None:
    version = distribution("torch").version
    found = package("torch", "sympy>=1.13", 'triton==3.7.1 ; platform_system == "Linux"', version=version)
    assert locking.cpu_torch(found, NEW, {"sympy": package("sympy")}).requires == ["sympy>=1.13"]


def test_markers_are_those_of_the_platform_not_of_this_python() -> None:
    root = package(
        "root",
        'arm ; platform_machine == "aarch64"',
        'intel ; platform_machine == "x86_64"',
        'old ; python_version < "3.12"',
        'windows ; sys_platform == "win32"',
    )
    assert reached(["root"], root, platform=NEW) == {"root", "arm"}
    assert reached(["root"], root, platform=OLD) == {"root", "intel", "old"}


def test_extras_and_their_circles_are_followed() -> None:
    root = package("Root", "leaf ; extra == 'fast'", "root[fast] ; extra == 'all'", "never ; extra == 'slow'")
    assert reached(["root"], root) == {"root"}
    assert reached(["root", "root[all]"], root, package("leaf", "root")) == {"root", "leaf"}


def test_a_package_for_the_first_releases_of_a_python_has_a_marker() -> None:
    root = package("root", 'backport ; python_full_version < "3.11.3"')
    known = {"root": root, "backport": package("backport")}
    assert locking.needed(["root"], known, OLD) == {"root": "", "backport": ' ; python_full_version < "3.11.3"'}
    assert locking.needed(["root"], known, NEW) == {"root": ""}


def test_a_version_that_is_not_accepted_is_told() -> None:
    with pytest.raises(SystemExit, match=r"constraints.txt has leaf 1.0, but leaf>=2 is needed."):
        reached(["root"], package("root", "leaf>=2"), package("leaf"))


def test_a_package_without_a_wheel_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"torch": package("torch", version="2.13.0"), "root": package("root", "leaf")}
    monkeypatch.setattr(locking, "find", lambda *_: dict(found))
    with pytest.raises(SystemExit, match=r"linux-aarch64-cp312 needs leaf: no wheel, or not in constraints.txt."):
        locking.lock(["root"], [], [], NEW)
