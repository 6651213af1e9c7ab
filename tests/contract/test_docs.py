"""What the pages name exists: files, modules, flags, commands and make targets outlive no change that removes them."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main

from chassis.settings import ServiceSettings, load_settings
from gateway.settings import GatewaySettings
from language_service.service import LanguageSettings
from tandem.commands import app
from vision_service.service import VisionSettings

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SERVICES: list[type[ServiceSettings]] = [GatewaySettings, VisionSettings, LanguageSettings]

BUF_FLAGS = {"--data", "--list-methods", "--protocol"}  # tests/tandem/test_readme.py runs what is written of them

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def named(pattern: str, page: Path) -> set[str]:
    """Return what a pattern's first group finds on a page."""
    return set(re.findall(pattern, page.read_text(), re.MULTILINE))


def commands(command: Any, typed: str) -> Iterator[tuple[str, Any]]:
    """Yield a command of the terminal and those below it, by what is typed."""
    yield typed, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{typed} {name}")


COMMANDS = dict(commands(typer.main.get_command(app), "tandem"))


def known_flags() -> set[str]:
    """Return the flags of the services, of the command, and of the programs of demo and benchmarks."""
    fields = {name.replace("_", "-") for settings in SERVICES for name in settings.model_fields}
    services = {f"--{name}" for name in fields} | {f"--no-{name}" for name in fields}
    ours = {flag for command in COMMANDS.values() for option in command.params for flag in option.opts}
    sources = [path.read_text() for folder in ("demo", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")]
    programs = {flag for source in sources for flag in re.findall(r'"(--[a-z-]+)"', source)}
    return services | ours | programs | BUF_FLAGS | {"--help"}


@page
def test_links_lead_to_files(page: Path) -> None:
    links = {link.partition("#")[0] for link in named(r"\]\(([^)]+)\)", page) if "://" not in link}
    assert not [link for link in links if link and not (page.parent / link).exists()]


@page
def test_named_files_and_folders_exist(page: Path) -> None:
    """A path is named from the repository's root, or from a package its paragraph is about."""
    names = named(r"`((?:[\w.-]+/)+[\w.-]*)`", page)
    assert not [name for name in names if not ((REPOSITORY / name).exists() or list(REPOSITORY.glob(f"*/{name}")))]


@page
def test_named_modules_exist(page: Path) -> None:
    assert not [module for module in named(r"python -m ([\w.]+)", page) if find_spec(module) is None]


@page
def test_named_flags_exist(page: Path) -> None:
    assert not named(r"(?<![\w-])(--[a-z][a-z-]+)", page) - known_flags()


@page
def test_named_commands_exist(page: Path) -> None:
    names = {" ".join(words.split()[:3]) for words in named(r"(?:^|`|bin/)(tandem(?: [a-z]+)+)", page)}
    # The third word is a sub-command only where the second one has some.
    groups = {typed for typed, command in COMMANDS.items() if hasattr(command, "commands")} - {"tandem"}
    typed = {name if name.rpartition(" ")[0] in groups else " ".join(name.split()[:2]) for name in names}
    assert not typed - COMMANDS.keys()


@page
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert not named(r"(?:`|^)make ([a-z-]+)", page) - targets


@pytest.mark.parametrize("settings", SERVICES)
def test_help_names_the_program_and_each_of_its_settings_in_words_people_type(
    settings: type[ServiceSettings], capsys: pytest.CaptureFixture[str]
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
