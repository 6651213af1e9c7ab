"""The plain install is the client, and extras are complete."""

import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from chassis.extras import MODULES
from tests.tandem.promised_modules import ELSEWHERE, FURTHER, PROMISED

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
NAME = PROJECT["name"]

Tandem = Callable[..., subprocess.CompletedProcess[str]]

# Commands that need an extra, as typed, and the extras. Each is refused without them.
REFUSED = {
    ("up",): ("tandem up", "the extras gateway and stages", "gateway,stages"),
    ("checkpoint", "new", "--preset", "tiny", "--tag", "a-v1.0.0"): (
        *("tandem checkpoint new", "the extra stages", "stages"),
    ),
    ("checkpoint", "import", ".", "--tag", "a-v1.0.0"): (*("tandem checkpoint import", "the extra stages", "stages"),),
    ("checkpoint", "pack", ".", "--tag", "a-v1.0.0", "--config", "config.json"): (
        *("tandem checkpoint pack", "the extra stages", "stages"),
    ),
    ("checkpoint", "inspect", "tiny-v1.0.0"): ("tandem checkpoint inspect TAG", "the extra stages", "stages"),
}
IMPORT_ALL = """
import importlib, pkgutil

left_out, *names = sys.argv[1:]
for name in names:
    module = importlib.import_module(name.removesuffix(".*"))
    if name.endswith(".*"):
        for found in pkgutil.walk_packages(module.__path__, module.__name__ + "."):
            is_private = found.name.rpartition(".")[2].startswith("_")  # __main__, and the compiled kernels
            if not is_private and found.name not in left_out.split():
                importlib.import_module(found.name)
"""
EVERY_HELP = """
import typer
from typer.testing import CliRunner
from tandem.commands import app

def show(command, path):
    done = CliRunner().invoke(app, [*path, "--help"])
    assert done.exit_code == 0 and done.stdout.startswith("Usage: "), (path, done.output)
    print(*path)
    for name, inner in getattr(command, "commands", {}).items():
        show(inner, [*path, name])

show(typer.main.get_command(app), [])
"""


def requirements(extra: str = "") -> list[Requirement]:
    """Return the requirements of an extra or the plain install."""
    texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [Requirement(text) for text in texts]


def included(extra: str) -> Iterator[str]:
    """Yield an extra and all extras that it includes."""
    yield extra
    for requirement in requirements(extra):
        if requirement.name == NAME:
            for inner in requirement.extras:
                yield from included(inner)


@cache
def installed_by(extras: str) -> set[str]:
    """Return all distributions that an install with some extras brings."""
    wanted = [part for extra in extras.split(",") if extra for part in included(extra)]
    todo = [requirement for extra in ("", *wanted) for requirement in requirements(extra)]
    found = {canonicalize_name(NAME)}
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        try:
            inner = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # for another platform
            continue
        environments = [{"extra": extra} for extra in ("", *requirement.extras)]
        todo += [one for one in inner if one.marker is None or any(map(one.marker.evaluate, environments))]
    return {str(name) for name in found}


def missing_modules(extras: str) -> list[str]:
    """Return the modules that an install with some extras lacks."""
    allowed = installed_by(extras)
    return [
        module
        for module, distributions in packages_distributions().items()
        if not any(canonicalize_name(name) in allowed for name in distributions)
    ]


def run_without(modules: list[str], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program that cannot import some modules."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n"
    command = [sys.executable, "-c", block + program, *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=100, cwd=REPOSITORY)


def client_only(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the `tandem` command as a plain install would."""
    program = "from tandem.commands import main\nsys.argv[0] = 'tandem'\nmain()"
    return run_without(missing_modules(""), program, *arguments)


def check_refusals(tandem: Tandem) -> None:
    for arguments, (command, extras, names) in REFUSED.items():
        done = tandem(*arguments)
        sentence = f"{command} needs {extras}: pip install '{NAME}[{names}]'.\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def check_store_commands(tandem: Tandem, models: Path) -> None:
    """Check the commands that read a model store without torch."""
    listed = tandem("checkpoint", "tags", "--models", str(models))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "tiny-v1.0.0" in listed.stdout
    verified = tandem("checkpoint", "verify", "tiny-v1.0.0", "--models", str(models))
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.count("as in the manifest") == 6
    inspected = tandem("checkpoint", "inspect", "--preset", "qwen3-vl-8b")
    assert inspected.returncode == 0, inspected.stderr
    assert "6,676,012,032" in inspected.stdout


@pytest.mark.parametrize("extras", PROMISED)
def test_an_extra_installs_all_that_its_modules_import(extras: str) -> None:
    left_out = " ".join([*ELSEWHERE, *(module for modules in FURTHER.values() for module in modules)])
    done = run_without(missing_modules(extras), IMPORT_ALL, left_out, *PROMISED[extras])
    assert done.returncode == 0, done.stderr


def test_the_plain_install_has_no_heavy_library() -> None:
    heavy = {"torch", "numpy", "pillow", "redis", "uvloop", "tokenizers", "safetensors", "structlog"}
    assert not heavy & installed_by("")
    assert heavy < installed_by("gateway,stages")


@pytest.mark.parametrize("extra", MODULES)
def test_the_check_for_an_extra_covers_all_its_packages(extra: str) -> None:
    packages = {str(canonicalize_name(one.name)) for part in included(extra) for one in requirements(part)} - {NAME}
    of_module = packages_distributions()
    looked_for = {str(canonicalize_name(name)) for module in MODULES[extra] for name in of_module[module]}
    assert looked_for == packages


def test_every_help_works_with_the_plain_install() -> None:
    done = run_without(missing_modules(""), EVERY_HELP)
    assert done.returncode == 0, done.stderr
    assert {"up", "ask", "top", "checkpoint tags", "rollout set", "keys new"} <= set(done.stdout.splitlines())


def test_a_command_without_its_extra_says_what_to_install() -> None:
    check_refusals(client_only)


@pytest.mark.parametrize("service", ["gateway", "language_service", "vision_service"])
def test_a_service_without_its_extra_says_what_to_install(service: str) -> None:
    extra = "gateway" if service == "gateway" else "stages"
    program = f"import runpy\nrunpy.run_module({service!r}, run_name='__main__')"
    done = run_without(missing_modules(""), program)
    sentence = f"python -m {service} needs the extra {extra}: pip install '{NAME}[{extra}]'.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def test_commands_on_a_store_work_with_the_plain_install(store: Path) -> None:
    check_store_commands(client_only, store)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel once, from a copy of the source."""
    folder = tmp_path_factory.mktemp("wheel")
    reachable = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder / "index"), "mdurl"]
    if subprocess.run(reachable, capture_output=True, timeout=100).returncode != 0:
        pytest.skip("pip reaches no package index")
    source = folder / "source"
    folders = ("models", "tests", "benchmarks", "docs", "build")
    ignored = ignore_patterns(*folders, ".*", "*.egg-info", "__pycache__", "*.so")
    copytree(REPOSITORY, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(source)]
    # Without a compiler: the kernels are optional, and nothing here runs them.
    environment = {**os.environ, "CC": "false", "CXX": "false"}
    subprocess.run(command, check=True, capture_output=True, timeout=200, env=environment)
    return next(folder.glob("*.whl"))


class Environment:
    """A virtual environment with the wheel and some extras."""

    def __init__(self, folder: Path, wheel: Path, extras: str) -> None:
        self.folder = folder
        venv.create(folder, symlinks=True)
        names = f"[{extras}]" if extras else ""
        command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
        command += ["--constraint", str(REPOSITORY / "constraints.txt"), f"{NAME}{names} @ {wheel.as_uri()}"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    def python(self, program: str) -> str:
        """Run a program and return its output."""
        command = [str(self.folder / "bin" / "python"), "-c", program]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=100, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tandem(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the `tandem` command."""
        command = [str(self.folder / "bin" / "tandem"), *arguments]
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=100, cwd=self.folder)

    def megabytes(self) -> float:
        """Return the size on disk, as `du` counts it."""
        return sum(path.lstat().st_blocks * 512 for path in self.folder.rglob("*")) / 2**20


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environments") / "client", wheel, "")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_client_alone(client: Environment, store: Path, record_property: Callable[[str, object], None]) -> None:
    record_property("megabytes", client.megabytes())
    assert client.megabytes() < 80
    version = client.python(
        "import tandem\ntandem.Client, tandem.AsyncClient, tandem.errors\nprint(tandem.__version__)"
    )
    assert client.tandem("--version").stdout == version
    metadata = client.python(
        "from importlib.metadata import metadata as read, files\n"
        f"print(read({NAME!r})['Version'], read({NAME!r})['License-Expression'])\n"
        f"print(any(path.name == 'LICENSE' for path in files({NAME!r})))"
    )
    assert metadata == f"{version.strip()} Apache-2.0\nTrue\n"
    for command in (["ask", "What?"], ["models"], ["rollout", "status"]):
        done = client.tandem(*command, "--address", "127.0.0.1:1")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "Cannot reach a gateway at 127.0.0.1:1; start one with `tandem up`.\n"
    assert client.tandem("top", "127.0.0.1:1").stderr.startswith("No metrics at 127.0.0.1:1")
    assert client.tandem("keys", "new", "acme").returncode == 0
    check_refusals(client.tandem)
    check_store_commands(client.tandem, store)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_type_checkers_see_the_public_types(client: Environment, tmp_path: Path) -> None:
    """Lazy imports alone would hide the names from type checkers."""
    program = tmp_path / "program.py"
    program.write_text("import tandem\nreveal_type(tandem.Client().ask('What?').usage)\ntandem.Picture\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(client.folder / "bin" / "python")]
    command += ["--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"), str(program)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=200, cwd=tmp_path)
    assert 'Revealed type is "tandem.client.types.Usage"' in done.stdout
    assert 'Module has no attribute "Picture"' in done.stdout
    assert "Found 1 error in 1 file" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gateway_alone(
    wheel: Path, store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    gateway = Environment(tmp_path / "gateway", wheel, "gateway")
    record_property("megabytes", gateway.megabytes())
    assert gateway.python("import gateway.service, sys; print('torch' in sys.modules)") == "False\n"
    program = "import runpy, sys\nsys.argv = ['gateway', '--help']\nrunpy.run_module('gateway', run_name='__main__')"
    assert "--vision" in gateway.python(program)
    check_refusals(gateway.tandem)
    check_store_commands(gateway.tandem, store)
