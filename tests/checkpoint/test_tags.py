import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from checkpoint.tags import MAX_TAG_CHARS, Tag, parse_tag

numbers = st.integers(0, 999_999_999)
names = st.builds(
    str.__add__,
    st.sampled_from(string.ascii_letters + string.digits),
    st.text(string.ascii_letters + string.digits + "._-", max_size=80),
)
tags = st.builds(Tag, names, numbers, numbers, numbers)


@given(tags)
def test_a_tag_reads_back_as_it_was_written(tag: Tag) -> None:
    assert parse_tag(str(tag)) == tag


@given(st.text(max_size=150))
def test_any_text_is_either_a_tag_or_a_typed_error(text: str) -> None:
    with suppress(InvalidArgument):
        assert str(parse_tag(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "demo",
        "demo-v1.0",
        "demo-1.0.0",
        "demo-v1.0.0.0",
        "demo-v01.0.0",  # a version has only one spelling
        "demo-v1.0.0\n",
        "-v1.0.0",
        ".demo-v1.0.0",  # the store uses names with a dot for unfinished checkpoints
        "../demo-v1.0.0",
        "a/b-v1.0.0",
        "demo-v١.0.0",  # a digit, but not ASCII
        "d" * MAX_TAG_CHARS + "-v1.0.0",
    ],
)
def test_text_that_is_not_a_tag_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a tag") as caught:
        parse_tag(text)
    assert caught.value.reason == "BAD_TAG"


def test_versions_sort_as_numbers() -> None:
    texts = ["demo-v1.10.0", "demo-v1.9.0", "demo-v1.9.0-v0.0.1", "a-v2.0.0"]
    assert [str(tag) for tag in sorted(map(parse_tag, texts))] == [
        "a-v2.0.0",
        "demo-v1.9.0",
        "demo-v1.10.0",
        "demo-v1.9.0-v0.0.1",
    ]
