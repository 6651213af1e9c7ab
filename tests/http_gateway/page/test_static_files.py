"""The page's files: their policy, their texts, no request elsewhere."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import http_gateway.page.static_files as static_files
from tandem.v1 import rollout_pb2

FOLDER = Path(static_files.__file__).parent / "static"
SCRIPTS = sorted(FOLDER.glob("*.js"))
MAX_LINES = 300


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=static_files.routes))


def keys_of(name: str) -> set[str]:
    """Return the keys of a language's texts."""
    return set(re.findall(r"^  (\w+):", (FOLDER / f"{name}.js").read_text(), re.MULTILINE))


def test_the_policy_forbids_everything_inline_and_elsewhere(client: TestClient) -> None:
    for path in ("/", "/page/main.js", "/page/base.css", "/page/samples/bag-and-bottle.png"):
        response = client.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert not re.search(r"unsafe|\*|https?:|data:", policy)
        assert "frame-ancestors 'none'" in policy


def test_an_unchanged_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/page/main.js", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/page/", "/page/../static_files.py", "/page/%2e%2e/operations.py", "/page/none.js"])
def test_only_files_of_the_page_are_served(path: str) -> None:
    client = TestClient(Starlette(routes=static_files.routes), raise_server_exceptions=False)
    assert client.get(path).status_code >= 400


def test_no_script_or_style_is_inline() -> None:
    html = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", html)
    assert all(re.search(r"\ssrc=", tag) for tag in re.findall(r"<script[^>]*>", html))
    for path in SCRIPTS:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", path.read_text()
        )


def test_nothing_comes_from_another_server() -> None:
    for path in [*SCRIPTS, *FOLDER.glob("*.css"), FOLDER / "index.html"]:
        addresses = set(re.findall(r"https?://[^\"' )]+", path.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


def test_both_languages_have_every_text() -> None:
    assert keys_of("english") == keys_of("chinese")
    chinese = (FOLDER / "chinese.js").read_text()
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese)) > 500


def test_both_languages_have_the_same_values_in_each_text() -> None:
    def values(name: str) -> dict[str, list[str]]:
        entries = re.findall(r"^  (\w+):\s+\"(.*)\",$", (FOLDER / f"{name}.js").read_text(), re.MULTILINE)
        return {key: sorted(re.findall(r"\{(\w+)\}", text)) for key, text in entries}

    assert values("english") == values("chinese")


def test_every_text_is_used_and_every_used_text_exists() -> None:
    sources = [(FOLDER / "index.html").read_text()]
    sources += [path.read_text() for path in SCRIPTS if path.stem not in ("english", "chinese")]
    source = "\n".join(sources)
    keys = keys_of("english")
    marked = set(re.findall(r'data-t(?:-label|-placeholder)?="(\w+)"', source))
    marked |= set(re.findall(r'\b(?:t|label): "(\w+)"', source))
    assert marked <= keys
    # Some keys are joined from a prefix and a name of the contract.
    prefixes = tuple(set(re.findall(r"`(\w+_)\$\{", source)))
    unused = {key for key in keys - marked if f'"{key}"' not in source and not key.startswith(prefixes)}
    assert not unused


def test_every_metric_of_a_rollout_has_a_text() -> None:
    metrics = [name.removeprefix("ROLLOUT_METRIC_").lower() for name in rollout_pb2.RolloutMetric.keys()[1:]]
    assert {f"metric_{name}" for name in metrics} <= keys_of("english")


def test_the_texts_in_the_page_are_the_english_ones() -> None:
    """They show before the script runs."""
    english = dict(re.findall(r"^  (\w+):\s+\"(.*)\",$", (FOLDER / "english.js").read_text(), re.MULTILINE))
    html = (FOLDER / "index.html").read_text()
    for key, text in re.findall(r'data-t="(\w+)"[^>]*>([^<]*)<', html):
        assert text in ("", english[key]), key


def test_the_samples_are_the_demos() -> None:
    demo = Path(__file__).parents[3] / "demo" / "images"
    assert {path.name: path.read_bytes() for path in demo.glob("*.png")} == {
        path.name: path.read_bytes() for path in (FOLDER / "samples").glob("*.png")
    }


def test_no_file_of_the_page_is_too_long() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in [*SCRIPTS, *FOLDER.glob("*.css")]}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
