"""Names in the docs exist: paths, modules, flags, commands."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main

from chassis.settings import ProcessSettings, load_settings
from gateway.settings import GatewaySettings
from http_gateway.door import HttpSettings
from language_service.service import LanguageSettings
from tandem.commands import app
from vision_service.service import VisionSettings

REPOSITORY = Path(__file__).parents[2]
# The change log also names things that no longer exist.
PAGES = sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")} - {REPOSITORY / "CHANGELOG.md"})
SERVICES: list[type[ProcessSettings]] = [GatewaySettings, VisionSettings, LanguageSettings, HttpSettings]

# Of kubectl, docker and tritonserver.
OTHER_FLAGS = {
    *("--for", "--from-file", "--replicas", "--wait"),
    *("--model-repository", "--model-control-mode", "--load-model"),
}
BUF_FLAGS = {"--data", "--list-methods", "--protocol"}  # tests/tandem/test_readme.py runs commands with these

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def matches(pattern: str, page: Path) -> set[str]:
    """Return the matches of a pattern's group on a page."""
    return set(re.findall(pattern, page.read_text(), re.MULTILINE))


def commands(command: Any, line: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and its sub-commands, with their command lines."""
    yield line, command
    for name, sub_command in getattr(command, "commands", {}).items():
        yield from commands(sub_command, f"{line} {name}")


COMMANDS = dict(commands(typer.main.get_command(app), "tandem"))


def known_flags() -> set[str]:
    """Return the flags of services, command, demo and benchmarks."""
    fields = {name.replace("_", "-") for settings in SERVICES for name in settings.model_fields}
    services = {f"--{name}" for name in fields} | {f"--no-{name}" for name in fields}
    command_flags = {
        flag
        for command in COMMANDS.values()
        for option in command.params
        for flag in [*option.opts, *option.secondary_opts]
    }
    sources = [path.read_text() for folder in ("demo", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")]
    programs = {flag for source in sources for flag in re.findall(r'"(--[a-z-]+)"', source)}
    # Arguments of `benchmarks.tools.report.parse_arguments`.
    arguments = {name for source in sources for name in re.findall(r"^ {8}([a-z_]+)=\{", source, re.MULTILINE)}
    programs |= {f"--{name.replace('_', '-')}" for name in arguments}
    return services | command_flags | programs | BUF_FLAGS | OTHER_FLAGS | {"--help"}


@page
def test_links_point_to_existing_files(page: Path) -> None:
    links = {link.partition("#")[0] for link in matches(r"\]\(([^)]+)\)", page) if "://" not in link}
    assert not [link for link in links if link and not (page.parent / link).exists()]


@page
def test_named_files_and_folders_exist(page: Path) -> None:
    """A path starts at the repository's root or a package."""
    names = matches(r"`((?:[\w.-]+/)+[\w.-]*)`", page)
    assert not [name for name in names if not ((REPOSITORY / name).exists() or list(REPOSITORY.glob(f"*/{name}")))]


@page
def test_named_modules_exist(page: Path) -> None:
    run = matches(r"python -m ([\w.]+)", page)
    quoted = matches(r"`((?:benchmarks|demo)\.\w+)`", page)
    assert not [module for module in run | quoted if find_spec(module) is None]


@page
def test_named_flags_exist(page: Path) -> None:
    assert not matches(r"(?<![\w-])(--[a-z][a-z-]+)", page) - known_flags()


@page
def test_named_variables_exist(page: Path) -> None:
    """A variable sets a setting, or the source quotes it."""
    prefixes = {str(settings.model_config["env_prefix"]): settings for settings in SERVICES}
    of_settings = {f"{prefix}{name.upper()}" for prefix, settings in prefixes.items() for name in settings.model_fields}
    folders = ("tandem", "chassis", "tests")
    sources = [path.read_text() for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    quoted = {name for source in sources for name in re.findall(r'"(TANDEM_[A-Z0-9_]+)"', source)}
    assert not matches(r"\b(TANDEM_[A-Z0-9_]+)", page) - of_settings - prefixes.keys() - quoted


@page
def test_named_commands_exist(page: Path) -> None:
    lines = {" ".join(words.split()[:3]) for words in matches(r"(?:^|`|bin/)(tandem(?: [a-z]+(?:-[a-z]+)*)+)", page)}
    # The third word is a sub-command only if the second one has sub-commands.
    groups = {line for line, command in COMMANDS.items() if hasattr(command, "commands")} - {"tandem"}
    named = {line if line.rpartition(" ")[0] in groups else " ".join(line.split()[:2]) for line in lines}
    assert not named - COMMANDS.keys()


@page
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert not matches(r"(?:`|^)make ([a-z0-9-]+)", page) - targets


@pytest.mark.parametrize("settings", SERVICES)
def test_help_lists_the_program_and_every_setting_without_python_syntax(
    settings: type[ProcessSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(settings, ["--help"])
    shown = capsys.readouterr().out
    program = f"python -m {settings.__module__.partition('.')[0]}"
    assert shown.startswith(f"usage: {program} ")
    assert not [
        name
        for name in settings.model_fields
        if f"{settings.model_config['env_prefix']}{name.upper()}]" not in "".join(shown.split())
    ]
    assert not [word for word in ("tuple[", "SecretStr", "None", "()") if word in shown]
