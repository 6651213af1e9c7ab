"""A file a reader can hold in mind; how long a function gets is for the linter (statements and branches)."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
FOLDERS = (
    "chassis",
    "checkpoint",
    "gateway",
    "vision_service",
    "language_service",
    "tandem",
    "demo",
    "benchmarks",
    "tests",
)
MOST_LINES = 300


def test_no_file_is_longer_than_a_reader_holds_in_mind() -> None:
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py") if "_pb2" not in path.name]
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in files}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
