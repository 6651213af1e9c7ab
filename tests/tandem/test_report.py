"""The tables of `tandem ask` and `tandem models`."""

import dataclasses
import io
import re

import pytest
from rich.console import Console, RenderableType

from tandem.client.types import Answer, Half, ImageReport, Release, ReleaseInfo, SamplingDefaults, Timings, Usage
from tandem.commands.models import defaults_table, models_table, sampling_text, short_count
from tandem.commands.report import timing_table
from tandem.commands.terminal import table_console

ANSWER = Answer(
    text="A red bag.",
    finish_reason="stop",
    usage=Usage(prompt_tokens=50, visual_tokens=32, cached_prompt_tokens=16, completion_tokens=5),
    timings=Timings(
        prepare_ms=1, vision_ms=12, queue_ms=0.5, prefill_ms=8, first_token_ms=22, decode_ms=40, total_ms=62
    ),
    release=Release(vision_tag="demo-v1.1.0", language_tag="demo-v1.1.0"),
    images=(
        ImageReport(sha256="00" * 32, cache_level="miss", num_visual_tokens=32, ready_ms=11.5),
        ImageReport(sha256="11" * 32, cache_level="gateway", num_visual_tokens=32, ready_ms=0.2),
    ),
    request_id="abc",
)


HALF = Half(
    tag="demo-v1.1.0",
    state="ready",
    backend="torch",
    device="cpu",
    precision="bfloat16",
    num_parameters=3_000_000,
    num_weight_bytes=6_000_000,
)
DEFAULT = ReleaseInfo(
    release=ANSWER.release,
    ready=True,
    is_default=True,
    vision=HALF,
    language=HALF,
    image_size=224,
    num_visual_tokens=32,
    max_images=8,
    context_length=1024,
)


def plain(renderable: RenderableType, width: int = 200) -> str:
    """Return the output at a line width, in characters."""
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_timing_table_shows_stages_and_cache_hits() -> None:
    text = plain(timing_table(ANSWER))
    assert "image 1 encoded (11.5 ms), image 2 cached (0.2 ms)" in text
    assert "50 tokens, 32 visual, 16 cached" in text
    assert re.search(r"^request +abc *$", text, re.MULTILINE)
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("miss", "image 1 encoded (7.0 ms)"),
        ("gateway", "image 1 cached (7.0 ms)"),
        ("shared", "image 1 cached in Redis (7.0 ms)"),
        ("vision", "image 1 cached in the vision service (7.0 ms)"),
        ("in_flight", "image 1 encoded with another request (7.0 ms)"),
        ("similar", "image 1 taken for abababababab, 97.2% similar (7.0 ms)"),
        ("9", "image 1 9 (7.0 ms)"),  # a newer server's
    ],
)
def test_the_timing_table_shows_where_visual_tokens_came_from(level: str, words: str) -> None:
    image = ImageReport(
        sha256="00" * 32,
        cache_level=level,
        num_visual_tokens=32,
        ready_ms=7,
        similar_sha256="ab" * 32 if level == "similar" else "",
        similarity=0.972 if level == "similar" else 0,
    )
    assert words in plain(timing_table(dataclasses.replace(ANSWER, images=(image,))))


def test_the_rate_counts_the_tokens_after_the_first() -> None:
    """The prefill makes the first token."""
    assert "5 tokens, 100 tokens/s" in plain(timing_table(ANSWER))


@pytest.mark.parametrize("tokens", [0, 1])
def test_an_answer_without_decode_steps_has_no_rate(tokens: int) -> None:
    usage = dataclasses.replace(ANSWER.usage, completion_tokens=tokens)
    timings = dataclasses.replace(ANSWER.timings, decode_ms=0)
    assert "tokens/s" not in plain(timing_table(dataclasses.replace(ANSWER, usage=usage, timings=timings)))


def test_an_answer_cut_at_the_limit_says_so() -> None:
    assert "cut at the limit" in plain(timing_table(dataclasses.replace(ANSWER, finish_reason="length")))


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (412_345, "412 K"), (3_210_000, "3.21 M"), (999_999, "1 M"), (6_700_000_000, "6.7 B")],
)
def test_parameter_counts_are_short(count: int, text: str) -> None:
    assert short_count(count) == text


def test_the_models_table_marks_default_and_not_ready() -> None:
    pair = Release(vision_tag="demo-v1.1.0", language_tag="demo-v1.0.0")
    other = dataclasses.replace(DEFAULT, release=pair, ready=False, is_default=False)
    first, second = plain(models_table([DEFAULT, other])).splitlines()[1:]
    assert first.split() == ["demo-v1.1.0", "(default)", "ready", "bfloat16", "3", "M", "3", "M", "32", "1,024"]
    assert second.startswith("demo-v1.1.0,demo-v1.0.0 not ready")


def test_visual_tokens_that_depend_on_the_image_are_shown_with_their_limit() -> None:
    info = dataclasses.replace(DEFAULT, num_visual_tokens=0, max_visual_tokens=1024)
    assert "≤ 1,024" in plain(models_table([info]))


def test_the_defaults_table_names_kind_and_sampling_within_80_characters() -> None:
    sampling = SamplingDefaults(temperature=0.7, top_k=20, top_p=0.8)
    info = dataclasses.replace(DEFAULT, kind="qwen3_vl", default_sampling=sampling)
    lines = plain(defaults_table([info, dataclasses.replace(DEFAULT, kind="direct")]), width=80).splitlines()
    assert [line.rstrip().split(maxsplit=2) for line in lines[1:]] == [
        ["demo-v1.1.0", "qwen3_vl", "temperature 0.7, top_k 20, top_p 0.8"],
        ["demo-v1.1.0", "direct", "greedy"],
    ]


@pytest.mark.parametrize(
    ("defaults", "text"),
    [
        ({}, "greedy"),
        ({"temperature": None, "top_k": 20}, "greedy"),
        ({"temperature": 0.0, "top_p": 0.8, "repetition_penalty": 1.05}, "greedy, repetition_penalty 1.05"),
        ({"temperature": 1.0, "top_k": None}, "temperature 1"),
    ],
)
def test_sampling_options_without_effect_are_left_out(defaults: dict[str, float | None], text: str) -> None:
    assert sampling_text(defaults) == text


def test_the_models_table_fits_80_characters_and_is_complete_in_a_pipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tag = "tandem-demo-v1.1.0"
    info = dataclasses.replace(DEFAULT, release=Release(vision_tag=tag, language_tag=tag), ready=False)
    assert "\u2026" not in plain(models_table([info]), width=80)
    long = dataclasses.replace(info, release=Release(vision_tag=90 * "a" + "-v1.1.0", language_tag=tag))
    table_console().print(models_table([long]))
    assert "\u2026" not in capsys.readouterr().out
