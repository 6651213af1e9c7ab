"""Build a target of a Dockerfile stage by stage, each stage once for its inputs.

    python3 -m images.stages --file images/Dockerfile --target vision --tag tandem-vision:0.1.0 -- buildah build

Every stage becomes an image, named by a digest of its instructions, arguments, files and earlier stages. A stage whose
image exists is not built again, in whatever folder the repository lies. Docker's BuildKit does the same by itself.
For buildah and podman. Their own cache of layers copies the files of a stage before it can tell that they are known.
"""

import argparse
import hashlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from images.requirements import requirements

NAME = "localhost/tandem-stage"
# Arguments that change no content. An image keeps the commit that it was first built from. The index of torch may be
# out of reach for a moment, while constraints.txt and VARIANT say which torch it is.
_NO_INPUTS = {"REVISION", "TORCH_INDEX"}
_LISTED = re.compile(r"requirements\.py ([^>]*)>")


@dataclass(frozen=True)
class Stage:
    """One stage of a Dockerfile."""

    base: str  # an earlier stage, or an image
    instructions: tuple[str, ...]  # without FROM

    @property
    def arguments(self) -> dict[str, str]:
        """The declared arguments with their defaults."""
        declared = [line.split(None, 1)[1] for line in self.instructions if line.startswith("ARG ")]
        return {name: default for name, _, default in (one.partition("=") for one in declared)}

    @property
    def copies(self) -> Iterator[tuple[str | None, list[str]]]:
        """The source stage (None for the context) and paths of each COPY."""
        for line in self.instructions:
            if line.startswith("COPY "):
                words = line.split()[1:]
                source = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
                yield source, [word for word in words if not word.startswith("--")][:-1]


def parse(text: str, arguments: Mapping[str, str]) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name.

    Args:
        text: the Dockerfile. Every stage has a name.
        arguments: replace the defaults of arguments before the first stage.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    instructions = [line.strip() for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines() if line.strip()]
    found: dict[str, list[str]] = {}
    bases: dict[str, str] = {}
    name, before = "", dict(arguments)
    for line in instructions:
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            base, name = match.groups()
            bases[name] = re.sub(r"\$\{(\w+)\}", lambda one: before[one[1]], base)
            found[name] = []
        elif name:
            found[name].append(line)
        else:
            argument, _, default = line.removeprefix("ARG ").partition("=")
            before.setdefault(argument, default)
    return {name: Stage(bases[name], tuple(lines)) for name, lines in found.items()}


class Builder:
    """Builds stages with buildah or podman."""

    def __init__(self, file: Path, context: Path, arguments: Mapping[str, str], build: Sequence[str]) -> None:
        """Read a Dockerfile.

        Args:
            file: the Dockerfile.
            context: folder of the files to copy, with a `.dockerignore`.
            arguments: values of the Dockerfile's arguments.
            build: the command, for example `buildah build --isolation chroot`.
        """
        self.stages = parse(file.read_text(encoding="utf-8"), arguments)
        self._context = context
        self._arguments = arguments
        self._build = list(build)
        self._names: dict[str, str] = {}

    def image(self, stage: str) -> str:
        """Return the image of a stage, and build it where it does not exist.

        Raises:
            CalledProcessError: the build fails. It has said why.
        """
        name = self.name(stage)
        if not self._output("images", "--quiet", name):
            one = self.stages[stage]
            needed = [source for source in (one.base, *(source for source, _ in one.copies)) if source in self.stages]
            images = {source: self.image(source) for source in needed if source}
            print(f"building the stage {stage}", file=sys.stderr, flush=True)
            self._run(one, images, name)
        return name

    def name(self, stage: str) -> str:
        """Return the name of a stage's image, with the digest of its inputs."""
        if stage not in self._names:
            digest = hashlib.sha256("\n".join(self._inputs(self.stages[stage])).encode()).hexdigest()
            self._names[stage] = f"{NAME}:{stage}-{digest[:32]}"
        return self._names[stage]

    def tag(self, image: str, name: str) -> None:
        """Give an image another name."""
        subprocess.run([self._build[0], "tag", image, name], check=True)

    def _inputs(self, stage: Stage) -> Iterator[str]:
        yield self.name(stage.base) if stage.base in self.stages else self._identity(stage.base)
        yield from stage.instructions
        for name, default in stage.arguments.items():
            if name not in _NO_INPUTS:
                yield f"{name}={self._arguments.get(name, default)}"
        # The stage that lists requirements depends on them alone. An edit elsewhere in pyproject.toml installs nothing.
        read = _requirements(stage)
        for source, paths in stage.copies:
            yield from [self.name(source)] if source else self._files(paths, read)

    def _identity(self, image: str) -> str:
        """Return the id of an image, or its name where it is yet to be pulled."""
        return self._output("images", "--quiet", "--no-trunc", image) or image

    def _files(self, patterns: Sequence[str], read: Callable[[Path], bytes]) -> Iterator[str]:
        """Yield path, mode and digest of the files of the context."""
        for pattern in patterns:
            found = sorted(self._context.glob(pattern))
            assert found, f"no file matches {pattern}"
            for path in found:
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file() and not self._is_ignored(file):
                        mode = "x" if file.stat().st_mode & 0o100 else "-"
                        digest = hashlib.sha256(read(file)).hexdigest()
                        yield f"{file.relative_to(self._context)} {mode} {digest}"

    def _is_ignored(self, file: Path) -> bool:
        parts = [file, *file.parents]
        return any(part.match(pattern) for part in parts for pattern in self._ignored)

    @cached_property
    def _ignored(self) -> list[str]:
        """The patterns of `.dockerignore` that hold in every folder."""
        lines = (self._context / ".dockerignore").read_text(encoding="utf-8").splitlines()
        return [line.removeprefix("**/") for line in lines if line.startswith("**/")]

    def _run(self, stage: Stage, images: Mapping[str, str], name: str) -> None:
        copy_from = re.compile(r"--from=(\S+)")
        lines = [copy_from.sub(lambda one: f"--from={images[one[1]]}", line) for line in stage.instructions]
        arguments = [f"{key}={self._arguments[key]}" for key in stage.arguments if key in self._arguments]
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".Dockerfile") as file:
            file.write("\n".join([f"FROM {images.get(stage.base, stage.base)}", *lines, ""]))
            file.flush()
            flags = ["--layers=false", "--quiet", "--file", file.name, "--tag", name]
            flags += [word for one in arguments for word in ("--build-arg", one)]
            subprocess.run([*self._build, *flags, str(self._context)], check=True, stdout=subprocess.DEVNULL)

    def _output(self, *command: str) -> str:
        done = subprocess.run([self._build[0], *command], stdout=-1, stderr=subprocess.DEVNULL, encoding="utf-8")
        return done.stdout.strip()


def _requirements(stage: Stage) -> Callable[[Path], bytes]:
    """Return how to read files: of pyproject.toml, only the requirements that a stage lists."""
    commands = " ".join(line for line in stage.instructions if line.startswith("RUN "))
    extras = [re.sub(r"--only \S+", "", one).split() for one in _LISTED.findall(commands)]

    def read(file: Path) -> bytes:
        content = file.read_bytes()
        if file.name != "pyproject.toml":
            return content
        project = tomllib.loads(content.decode())["project"]
        return json.dumps([requirements(project, names) for names in extras]).encode()

    return read if extras else Path.read_bytes


def main() -> None:
    """Build one target."""
    parser = argparse.ArgumentParser(description="Build a target of a Dockerfile, each stage once for its inputs.")
    parser.add_argument("--file", type=Path, required=True, help="the Dockerfile")
    parser.add_argument("--target", required=True, help="the stage to build")
    parser.add_argument("--tag", required=True, help="name of the image")
    parser.add_argument("--build-arg", action="append", default=[], help="NAME=VALUE, as of buildah")
    parser.add_argument("build", nargs="+", help="the command: buildah build, or podman build, with its flags")
    options = parser.parse_args()
    arguments = dict(one.split("=", 1) for one in options.build_arg)
    builder = Builder(options.file, Path(), arguments, options.build)
    try:
        builder.tag(builder.image(options.target), options.tag)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"failed: {shlex.join(error.cmd)}") from None


if __name__ == "__main__":
    main()
