"""Write the SBOM of each image, as CycloneDX JSON.

Adds Debian's packages to the list of Python's packages, which `cyclonedx-py environment` writes. Needs the packages of
images/sbom.txt, and runs in a stage of the Dockerfile of which the images only take the documents.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

_QUERY = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"]


def main() -> None:
    """Write a document for each image named in the arguments."""
    parser = argparse.ArgumentParser(description="Write the SBOM of each image, as CycloneDX JSON.")
    parser.add_argument("python", help="the Python interpreter of the images")
    parser.add_argument("folder", type=Path, help="gets the documents, IMAGE.cdx.json")
    parser.add_argument("version", help="of the images")
    parser.add_argument("images", nargs="+", help="names of images that have these packages")
    options = parser.parse_args()
    python = json.loads(output(sys.executable, "-m", "cyclonedx_py", "environment", options.python))
    debian = list(debian_packages(output(*_QUERY).splitlines(), platform.freedesktop_os_release()))
    options.folder.mkdir(exist_ok=True)
    for name in options.images:
        text = document(name, options.version, python, debian)
        (options.folder / f"{name}.cdx.json").write_text(text, encoding="utf-8")


def output(*command: str) -> str:
    """Run a program and return its output."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


def document(name: str, version: str, python: Any, debian: Iterable[Component]) -> str:
    """Return the document of an image.

    Raises:
        ValueError: it does not fit the schema of CycloneDX.
    """
    bom: Bom = Bom.from_json(python)  # type: ignore[attr-defined]  # a decorator adds it
    bom.components.update(debian)
    image = Component(type=ComponentType.CONTAINER, name=name, version=version, bom_ref=name)
    bom.metadata.component = image
    bom.register_dependency(image, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(str(error))
    return text


def debian_packages(lines: Sequence[str], release: Mapping[str, str]) -> Iterator[Component]:
    """Yield the installed packages.

    Args:
        lines: status, name, version and architecture, as dpkg-query shows them.
        release: fields of /etc/os-release. Scanners look for `distro`.
    """
    distro = f"{release['ID']}-{release.get('VERSION_ID', 'unknown')}"
    for status, name, version, architecture in map(str.split, lines):
        if status == "installed":
            qualifiers = {"arch": architecture, "distro": distro}
            url = PackageURL("deb", release["ID"], name, version, qualifiers)
            yield Component(type=ComponentType.LIBRARY, name=name, version=version, purl=url, bom_ref=url.to_string())


if __name__ == "__main__":
    main()
