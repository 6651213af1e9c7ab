"""Files of probes: each bad line is a typed error."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.probes import Probes, merge_probes, parse_probes, read_probes_file
from checkpoint.probes import file as probes_file
from tests.checkpoint.probes.files import no_image, parse, probe_line

IMAGE = b"\x89PNG, or so"
DIGEST = hashlib.sha256(IMAGE).hexdigest()
IMAGE_LINE = json.dumps({"image": base64.b64encode(IMAGE).decode()})


def about(**image: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", **image}, {"type": "text", "text": "What is it?"}]}]


def test_a_probe_names_an_image_of_an_earlier_line_by_its_digest() -> None:
    probes = parse(IMAGE_LINE, "", probe_line(messages=about(sha256=DIGEST), slices={"topic": "kind", "hall": "2"}))
    (probe,) = probes.probes
    assert probe.messages[0].parts == (bytes.fromhex(DIGEST), "What is it?")
    assert probes.images == {bytes.fromhex(DIGEST): IMAGE}
    assert probe.slice_names == ("hall=2", "topic=kind")


def test_an_image_may_be_a_file_beside_the_probes(tmp_path: Path) -> None:
    (tmp_path / "bag.png").write_bytes(IMAGE)
    lines = [probe_line("a", messages=about(file="bag.png")), probe_line("b", messages=about(file="bag.png"))]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    probes = read_probes_file(tmp_path / "mine.jsonl")
    assert (list(probes.images.values()), probes.files) == ([IMAGE], ("bag.png",))


@pytest.mark.parametrize(
    ("lines", "reason", "words"),
    [
        (["{"], "BAD_PROBES", "Line 1 .*not JSON"),
        (["\udcff"], "BAD_PROBES", "Line 1 .*not JSON"),
        (["[" * 100_000], "BAD_PROBES", "Line 1 .*not JSON"),
        (["", "{}"], "BAD_PROBES", "Line 2"),
        ([], "BAD_PROBES", "no probe"),
        ([IMAGE_LINE], "BAD_PROBES", "no probe"),
        ([probe_line(colour="red")], "BAD_PROBES", "colour"),
        ([probe_line("../x")], "BAD_PROBES", "id"),
        ([probe_line(max_tokens=0)], "BAD_PROBES", "max_tokens"),
        ([probe_line(slices={"topic": "two\nlines"})], "BAD_PROBES", "slices"),
        ([probe_line(messages=[])], "BAD_PROBES", "messages"),
        ([probe_line(messages=[{"role": "assistant", "content": "A bag."}])], "BAD_PROBES", "the user's"),
        ([probe_line(weight=3)], "PROBE_WEIGHT", "has no weight.*slice"),
        ([probe_line(), probe_line()], "DUPLICATE_PROBE", "Line 2 .*one is used twice"),
        ([probe_line(judge={"similar": "A bag."})], "UNKNOWN_JUDGE", "one of exact, one_of"),
        ([probe_line(judge={})], "UNKNOWN_JUDGE", "one of exact, one_of"),
        ([probe_line(judge={"exact": "a", "regex": "a"})], "UNKNOWN_JUDGE", "one of exact, one_of"),
        ([probe_line(judge={"regex": "("})], "BAD_EXPRESSION", "does not compile"),
        ([probe_line(judge={"regex": r"(a)\1"})], "BAD_EXPRESSION", "does not compile"),
        ([probe_line(judge={"regex": "a" * 2001})], "BAD_EXPRESSION", "more than 2000"),
        ([probe_line(judge={"regex": "((a{1000}){1000}){1000}"})], "BAD_EXPRESSION", "does not compile"),
        ([probe_line(judge={"exact": ""})], "BAD_JUDGE", "not empty"),
        ([probe_line(judge={"one_of": []})], "BAD_JUDGE", "a list"),
        ([probe_line(judge={"exact": "a", "tolerance": 1})], "BAD_JUDGE", "tolerance"),
        ([probe_line(judge={"json": 1, "tolerance": -1})], "BAD_JUDGE", "tolerance"),
        ([probe_line(messages=about(sha256=DIGEST))], "PROBE_IMAGE_MISSING", "no earlier line"),
        ([probe_line(messages=about(sha256="nonsense"))], "PROBE_IMAGE_MISSING", "no earlier line"),
        ([probe_line(messages=about(file="bag.png"))], "PROBE_IMAGE_MISSING", "cannot be read"),
        ([probe_line(messages=about(file="../bag.png"))], "PROBE_IMAGE_MISSING", "beside the probes"),
        ([probe_line(messages=about())], "BAD_PROBES", "either sha256 or file"),
        (['{"image": "?"}', probe_line()], "BAD_PROBES", "Line 1 .*not base64"),
        (['{"image": ""}', probe_line()], "PROBE_IMAGE_TOO_LARGE", "0 bytes"),
        ([IMAGE_LINE, probe_line(messages=about(sha256=DIGEST) * 9)], "BAD_PROBES", "more than 8 images"),
    ],
)
def test_a_bad_line_is_a_typed_error(lines: list[str], reason: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as raised:
        parse_probes("\n".join(lines).encode(errors="surrogateescape"), no_image)
    assert raised.value.reason == reason


def test_an_image_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_file, "MAX_IMAGE_BYTES", len(IMAGE) - 1)
    with pytest.raises(InvalidArgument) as raised:
        parse(IMAGE_LINE, probe_line(messages=about(sha256=DIGEST)))
    assert raised.value.reason == "PROBE_IMAGE_TOO_LARGE"


def test_a_hundred_thousand_probes_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"Line 10001 .*more than 10,000 probes") as raised:
        parse(*(probe_line(f"p{number}") for number in range(100_000)))
    assert raised.value.reason == "TOO_MANY_PROBES"


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        read_probes_file(tmp_path / "none.jsonl")
    assert raised.value.reason == "BAD_PROBES"
    assert str(tmp_path) not in raised.value.message


def test_a_huge_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes_file, "MAX_FILE_BYTES", 10)
    (tmp_path / "huge.jsonl").write_text(probe_line())
    with pytest.raises(InvalidArgument) as raised:
        read_probes_file(tmp_path / "huge.jsonl")
    assert raised.value.reason == "TOO_MANY_PROBES"


def test_a_union_has_each_probe_once_and_renames_other_ones_of_the_same_id() -> None:
    """Two releases mostly carry the same probes."""
    first = parse(probe_line("a"), probe_line("b", judge={"exact": "A hat."}))
    second = parse(probe_line("renamed"), probe_line("b", judge={"exact": "A cup."}), probe_line("c", max_tokens=9))
    union = merge_probes([first, second, Probes()])
    assert [probe.id for probe in union.probes] == ["a", "b", "b.2", "c"]
    assert not merge_probes([]).probes
