"""Print the packages of this image as CycloneDX JSON.

Lists Python's packages and Debian's. Runs inside the image, without anything installed for it.
"""

import json
import subprocess
import sys
from importlib.metadata import distributions


def main() -> None:
    """Print the document for the image named in the arguments."""
    name, version = sys.argv[1:]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "version": version}},
        "components": [*python_packages(), *debian_packages()],
    }
    json.dump(document, sys.stdout, indent=1)


def python_packages() -> list[dict[str, object]]:
    """Return Python's packages as components."""
    found = {one.metadata["Name"].lower().replace("_", "-"): one for one in distributions()}
    return [
        {
            "type": "library",
            "name": name,
            "version": one.version,
            "purl": f"pkg:pypi/{name}@{one.version}",
            **licence(one.metadata["License-Expression"]),
        }
        for name, one in sorted(found.items())
    ]


def licence(expression: str | None) -> dict[str, object]:
    """Return the licence field, if the package has an SPDX expression."""
    return {"licenses": [{"expression": expression}]} if expression else {}


def debian_packages() -> list[dict[str, object]]:
    """Return Debian's packages as components."""
    query = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"]
    listed = subprocess.run(query, check=True, capture_output=True, encoding="utf-8").stdout
    return [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:deb/debian/{name}@{version}?arch={architecture}",
        }
        for name, version, architecture in map(str.split, listed.splitlines())
    ]


if __name__ == "__main__":
    main()
