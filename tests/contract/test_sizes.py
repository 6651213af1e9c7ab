"""Limit the length of source files.

The linter limits functions, by their numbers of statements and branches.
"""

from tests.contract.import_graph import REPOSITORY, sources

MAX_LINES = 300


def test_no_source_file_exceeds_the_limit() -> None:
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in sources()}
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
