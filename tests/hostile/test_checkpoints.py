"""A checkpoint of a stranger is refused, and costs little."""

import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from chassis.errors import FailedPrecondition
from checkpoint.config import parse_config, read_config
from checkpoint.manifest import read_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.small_files import read_small_file
from checkpoint.tokenizer import CHAT_TEMPLATE
from processing import ChatTemplate
from processing.chat_template import ChatMessage

USER: ChatMessage = {"role": "user", "content": [{"type": "text", "text": "a question"}]}
TWO_TURNS = [USER, USER]

GROWING = "{% for i in range(60) %}{% set n.x = more %}{% endfor %}"
# What each asks for.
MEMORY = {
    "a text that is repeated": "{{ 'a' * 2600000000 }}",
    "a text with a wide field": "{{ '%2600000000d' % 1 }}",
    "a text that doubles": "{% set n = namespace(x='ab') %}" + GROWING.replace("more", "n.x ~ n.x"),
    "a list that grows": "{% set n = namespace(x=[1] * 1000) %}" + GROWING.replace("more", "n.x * 99"),
    "a wide text by a filter": "{{ 'a' | center(2600000000) }}",
    "a replacement that grows": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
}
TIME = {
    "loops in a loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a large power": "{{ 9 ** 99999999 }}",
}


@pytest.mark.parametrize("source", MEMORY.values(), ids=MEMORY)
def test_a_template_that_takes_memory_is_refused_when_it_is_loaded(source: str) -> None:
    with pytest.raises(FailedPrecondition, match="takes too much memory") as raised:
        ChatTemplate(source)
    assert raised.value.reason == "BAD_CHECKPOINT"


@pytest.mark.parametrize("source", TIME.values(), ids=TIME)
def test_a_template_that_takes_time_is_refused_when_it_is_loaded(source: str) -> None:
    with pytest.raises(FailedPrecondition, match="takes too much time"):
        ChatTemplate(source)


def test_a_template_that_waits_for_its_victim_fails_that_conversation_alone() -> None:
    bomb = "{% if messages | length > 1 %}{{ 'a' * 2600000000 }}{% endif %}"
    template = ChatTemplate(bomb + CHAT_TEMPLATE)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="takes too much memory"):
            template.render(TWO_TURNS)
        assert template.render([USER])


def test_the_memory_of_templates_is_not_that_of_the_service() -> None:
    """One once took its gateway 2.6 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in MEMORY.values():
        with pytest.raises(FailedPrecondition):
            ChatTemplate(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # kilobytes


def test_a_slow_template_delays_no_conversation_that_was_rendered_before() -> None:
    template = ChatTemplate(
        "{% if messages | length > 1 %}{{ (messages | length) ** 9999999999 }}{% endif %}" + CHAT_TEMPLATE
    )
    pieces = template.render([USER])
    errors: list[FailedPrecondition] = []

    def render() -> None:
        try:
            template.render(TWO_TURNS)
        except FailedPrecondition as error:
            errors.append(error)

    thread = threading.Thread(target=render)
    thread.start()
    assert template.render([USER]) == pieces
    assert not errors
    thread.join(60)
    assert len(errors) == 1


def test_a_template_cannot_see_the_environment_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services have passwords there."""
    monkeypatch.setenv("TANDEM_REDIS_PASSWORD", "secret")
    template = ChatTemplate(CHAT_TEMPLATE)
    assert template._process._program is not None
    environment = Path(f"/proc/{template._process._program.pid}/environ").read_bytes()
    assert b"PYTHONPATH" in environment
    assert b"secret" not in environment


def test_the_process_of_a_template_ends_with_it() -> None:
    template = ChatTemplate(CHAT_TEMPLATE)
    program = template._process._program
    assert program is not None
    assert program.poll() is None
    del template
    assert program.poll() is not None


def numbers(fields: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return where a configuration has numbers."""
    found = []
    for name, value in fields.items():
        if isinstance(value, dict):
            found += numbers(value, (*path, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((*path, name))
    return found


TINY = RESAMPLER_PRESETS["tiny"].model_dump(mode="json")


@pytest.mark.parametrize("path", numbers(TINY), ids=".".join)
def test_every_number_of_a_configuration_has_a_limit(path: tuple[str, ...]) -> None:
    """A million layers once took gigabytes for their names alone."""
    for value in (2**62, 10**300):
        fields = json.loads(json.dumps(TINY))
        *parents, name = path
        part = fields
        for parent in parents:
            part = part[parent]
        part[name] = value
        with pytest.raises(FailedPrecondition) as raised:
            parse_config(json.dumps(fields), "config.json")
        assert raised.value.reason == "BAD_CHECKPOINT"


@pytest.mark.parametrize("text", ["[" * 500_000, '{"a":' * 500_000, '{"language": ' + "9" * 500_000 + "}"])
def test_json_without_end_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition):
        parse_config(text, "config.json")


def test_files_without_end_are_not_read_to_their_end(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-v1.0.0"
    folder.mkdir()
    for name in ("config.json", "manifest.json", "tokenizer.json", "chat_template.jinja"):
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(FailedPrecondition, match="is larger than"):
            read_small_file(folder / name)
    for read in (read_config, read_manifest):
        with pytest.raises(FailedPrecondition):
            read(folder)


def test_positions_that_no_file_backs_are_bounded() -> None:
    """Sines and cosines are computed, so no file limits them."""
    fields = json.loads(json.dumps(TINY))
    fields["vision"] |= {"image_size": 16_384, "patch_size": 1, "pool_size": 1, "positions": "sincos_2d"}
    with pytest.raises(FailedPrecondition, match="patches, more than"):
        parse_config(json.dumps(fields), "config.json")
