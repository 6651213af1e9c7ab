"""Asking about images in a real browser."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.http_gateway.page.conftest import DemoStack, Keep, Open, TinyStack, Visit, at_both_widths

pytestmark = pytest.mark.http

MakeImage = Callable[[], bytes]


@at_both_widths
def test_a_first_visit_offers_questions_one_click_away(demo: DemoStack, visit: Open, keep_screen: Keep) -> None:
    opened = visit(demo.url)
    page = opened.page
    page.wait_for_selector("#connection[data-state=ready]")
    opened.wait_until("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    keep_screen(opened, "welcome")
    assert len(page.query_selector_all(".sample")) == 2
    page.click(".sample:first-child li:first-child button")
    answer = opened.wait_for_answer()
    assert "bag" in answer
    assert page.is_hidden("#welcome")
    assert page.inner_text("#turns .turn-question p") == "Describe the picture."


@at_both_widths
def test_a_dropped_image_is_cached_for_the_second_question(
    demo: DemoStack, visit: Open, make_scene_image: MakeImage, keep_screen: Keep
) -> None:
    opened = visit(demo.url)
    page = opened.page
    opened.drop(make_scene_image())
    opened.ask("Describe the picture.")
    assert opened.wait_for_answer()
    assert opened.levels() == ["Encoded now"]
    report = page.inner_text(".report")
    assert "tandem-demo-v1.1.0" in report
    for stage in ("Vision", "Prefill", "Decode"):
        assert stage in report

    page.click("text=Ask again")
    page.wait_for_selector(".report .badge.good")
    assert opened.levels() == ["Cached: gateway"]
    keep_screen(opened, "answer")

    opened.ask("What colour is the item on the left?")  # without the image: it is part of the conversation
    assert opened.wait_for_answer()
    assert opened.levels() == ["Cached: gateway"]


def test_several_images_come_by_drop_paste_and_choice(
    demo: DemoStack, visit: Open, make_scene_image: MakeImage, tmp_path: Path
) -> None:
    opened = visit(demo.url)
    page = opened.page
    opened.drop(make_scene_image(), make_scene_image())
    opened.paste(make_scene_image())
    chosen = tmp_path / "chosen.png"
    chosen.write_bytes(make_scene_image())
    page.set_input_files("#files", chosen)
    page.wait_for_selector("#attachments [alt='chosen.png']")
    page.click("#attachments li:first-child button")
    assert len(page.query_selector_all("#attachments li")) == 3
    opened.ask("How many items are there?")
    opened.wait_for_answer()
    assert opened.levels() == ["Encoded now"] * 3


def test_a_file_that_is_no_image_is_refused_in_words(demo: DemoStack, visit: Open, tmp_path: Path) -> None:
    opened = visit(demo.url)
    for name, content in (("notes.txt", b"no image"), ("broken.png", b"\x89PNG\r\n\x1a\nbroken")):
        file = tmp_path / name
        file.write_bytes(content)
        opened.page.set_input_files("#files", file)
        opened.page.wait_for_selector(f"#attach-problem:has-text('{name} is not an image')")
    assert opened.page.is_hidden("#attachments")


def begin_long_answer(opened: Visit) -> None:
    """Wait for the first words of a long answer."""
    opened.page.evaluate("localStorage.setItem('tandem', JSON.stringify({maxTokens: 16000, temperature: 0}))")
    opened.page.reload()
    opened.ask("Tell me everything.")
    opened.wait_until("document.querySelector('.answer-text')?.textContent.length > 3")


@at_both_widths
def test_an_answer_streams_and_stops(tiny: TinyStack, visit: Open) -> None:
    opened = visit(tiny.url)
    page = opened.page
    begin_long_answer(opened)
    assert page.get_attribute("#turns > li", "data-status") == "running"
    page.click("#stop")
    stopped = opened.wait_for_answer("stopped")
    assert len(stopped) > 3
    assert "You stopped this answer." in page.inner_text("#turns")
    page.wait_for_timeout(300)
    assert page.inner_text(".answer-text") == stopped
    page.click("#open-settings")
    page.fill("#max-tokens", "5")
    page.click("#settings footer button")
    opened.ask("Go on.")
    opened.wait_for_answer()


@at_both_widths
def test_the_page_survives_the_loss_of_the_gateway(tiny: TinyStack, visit: Open, keep_screen: Keep) -> None:
    opened = visit(tiny.url)
    page = opened.page
    page.wait_for_selector("#connection[data-state=ready]")
    tiny.cluster.kill("gateway-0")
    try:
        opened.ask("Is anyone there?")
        page.wait_for_selector(".failure", timeout=30_000)
        assert "The model cannot be reached at the moment." in page.inner_text(".failure")
        page.wait_for_selector("#connection[data-state=away]")
        keep_screen(opened, "error")
    finally:
        tiny.cluster.restart_killed()
    page.wait_for_selector("#connection[data-state=ready]", timeout=30_000)
    page.click(".failure button")
    assert opened.wait_for_answer()
    assert not page.query_selector_all(".failure:visible")


def test_a_lost_network_is_named_and_retried(demo: DemoStack, visit: Open) -> None:
    opened = visit(demo.url)
    page = opened.page
    page.wait_for_selector("#connection[data-state=ready]")
    page.context.set_offline(True)
    opened.ask("Is anyone there?")
    page.wait_for_selector("text=The server does not answer.")
    page.wait_for_selector("#connection[data-state=away]")
    page.context.set_offline(False)
    page.wait_for_selector("#connection[data-state=ready]")
    page.click(".failure button")
    assert opened.wait_for_answer()


@pytest.mark.slow
def test_an_answer_that_breaks_off_says_so(tiny: TinyStack, visit: Open) -> None:
    opened = visit(tiny.url)
    page = opened.page
    begin_long_answer(opened)
    tiny.cluster.kill("language-0")
    try:
        page.wait_for_selector(".failure")
        assert len(page.inner_text(".answer-text")) > 3  # what arrived stays
    finally:
        tiny.cluster.restart_killed()


def test_a_request_that_the_server_refuses_shows_its_reason(demo: DemoStack, visit: Open) -> None:
    opened = visit(demo.url)
    opened.ask("?" * 12_000)
    opened.page.wait_for_selector(".failure")
    shown = opened.page.inner_text(".failure")
    assert "The question was refused." in shown
    assert "Request " in shown  # its id, for the operator


@at_both_widths
def test_the_language_switches_everywhere_and_stays(demo: DemoStack, visit: Open, keep_screen: Keep) -> None:
    opened = visit(demo.url)
    page = opened.page
    page.click(".sample:last-child li:last-child button")
    opened.wait_for_answer()
    page.click("#language")
    assert page.get_attribute("html", "lang") == "zh"
    shown = page.inner_text("body")
    for text in ("再问一次", "预填充", "解码", "新对话"):
        assert text in shown
    for text in ("Ask again", "Prefill", "Decode", "New conversation"):
        assert text not in shown
    assert page.get_attribute("#question", "placeholder") == "针对图片提问"
    page.reload()
    assert page.inner_text("#welcome h2") == "看图提问"
    keep_screen(opened, "chinese")
    page.click(".sample:first-child li:last-child button")
    assert "紫" in opened.wait_for_answer()


def test_a_visitor_whose_browser_speaks_chinese_reads_chinese(demo: DemoStack, visit: Open) -> None:
    assert visit(demo.url, locale="zh-CN").page.inner_text("#welcome h2") == "看图提问"


def test_the_conversation_is_saved_with_images_and_reports(
    demo: DemoStack, visit: Open, make_scene_image: MakeImage
) -> None:
    opened = visit(demo.url)
    page = opened.page
    opened.drop(make_scene_image())
    opened.ask("Describe the picture.")
    answer = opened.wait_for_answer()
    with page.expect_download() as download:
        page.click("#export-json")
    question, reply = json.loads(Path(download.value.path()).read_text())["messages"]
    assert question["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (reply["role"], reply["content"]) == ("assistant", answer)
    assert reply["tandem"]["images"][0]["cache_level"] == "miss"
    with page.expect_download() as download:
        page.click("#export-text")
    assert answer in Path(download.value.path()).read_text()
    page.click("#new-conversation")
    assert page.is_visible("#welcome")


def test_everything_can_be_done_by_keyboard(demo: DemoStack, visit: Open) -> None:
    opened = visit(demo.url)
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("How many items are there?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Tell me.")
    page.keyboard.press("Enter")
    answer = opened.wait_for_answer()
    assert page.inner_text(".turn-question p") == "How many items are there?\nTell me."
    assert page.text_content("#announcer") == f"Answer: {answer}"  # a screen reader hears it whole, not in pieces
    page.focus("#tab-ask")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-operations"
    assert page.is_visible("#view-operations")


def test_markup_in_questions_and_answers_stays_text(demo: DemoStack, visit: Open) -> None:
    opened = visit(demo.url)
    markup = "<img src=x onerror=alert(1)><b>bold</b> {name}"
    opened.ask(f"{markup} What is it?")
    opened.wait_for_answer()
    page = opened.page
    assert page.inner_text(".turn-question p").startswith(markup)
    assert page.query_selector(".turn-question b, .turn-question img") is None


def test_the_settings_go_with_the_question(demo: DemoStack, visit: Open) -> None:
    opened = visit(demo.url)
    page = opened.page
    page.click("#open-settings")
    page.wait_for_selector("#settings[open]")
    opened.wait_until("document.querySelectorAll('#release option').length > 1")
    page.select_option("#release", "tandem-demo-v1.1.0")
    page.select_option("#theme", "dark")
    page.fill("#max-tokens", "3")
    page.click("#settings footer button")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.click(".sample:first-child li:first-child button")
    body = sent.value.post_data_json
    assert (body["model"], body["max_tokens"]) == ("tandem-demo-v1.1.0", 3)
    opened.wait_for_answer()
    assert "The answer ended at the limit of its tokens." in page.inner_text("#turns")
    page.reload()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Pause a process."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_question_stops_before_its_first_token(tiny: TinyStack, visit: Open, keep_screen: Keep) -> None:
    opened = visit(tiny.url)
    page = opened.page
    with paused(tiny.cluster.pid("language-0")):
        opened.ask("Are you busy?")
        page.wait_for_selector("text=Waiting for the first token")
        keep_screen(opened, "waiting")
        page.click("#stop")
        opened.wait_for_answer("stopped")
