"""Limit the length of source files.

The linter limits functions, by their numbers of statements and branches.
"""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDERS = (
    "chassis",
    "checkpoint",
    "gateway",
    "vision_service",
    "language_service",
    "processing",
    "hosting",
    "tandem",
    "demo",
    "benchmarks",
    "tests",
)
MAX_LINES = 300


def test_no_source_file_exceeds_the_limit() -> None:
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py") if "_pb2" not in path.name]
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in files}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
