"""Write the packages that pip resolved, with their hashes: `make lock`.

Reads the report of `pip install --dry-run --report` on standard input.
"""

import json
import sys


def main() -> None:
    """Print one requirement a line."""
    print("# Every package for `make` on this platform, with the SHA-256 of its file. `make lock` writes this.")
    for one in sorted(json.load(sys.stdin)["install"], key=lambda one: one["metadata"]["name"].lower()):
        metadata, sha256 = one["metadata"], one["download_info"]["archive_info"]["hashes"]["sha256"]
        print(f"{metadata['name']}=={metadata['version']} --hash=sha256:{sha256}")


if __name__ == "__main__":
    main()
