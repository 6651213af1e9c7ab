"""The operators' view in a real browser."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tandem.client import Rollouts
from tandem.stack import Stack, StackConfig
from tandem.v1 import rollout_pb2
from tests.gateway.api_keys import tenant_entry
from tests.http_gateway.page.conftest import (
    CANARY,
    STABLE,
    DemoStack,
    Keep,
    Open,
    at_both_widths,
    running_demo,
)

pytestmark = pytest.mark.http

PLAN = rollout_pb2.RolloutPlan(
    steps=[
        rollout_pb2.RolloutStep(weight_percent=50, seconds=600),
        rollout_pb2.RolloutStep(weight_percent=100, seconds=600),
    ],
    guard=rollout_pb2.RolloutGuard(max_error_rate_increase=0.05, max_first_token_ratio=2, max_empty_rate_increase=0.05),
)


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoStack]:
    """Yield a stack with the older release."""
    with running_demo(STABLE) as demo:
        yield demo


@pytest.fixture
def rollout(demo: DemoStack) -> Iterator[Rollouts]:
    """Yield an operator's connection during a rollout."""
    with Rollouts(demo.gateway) as rollouts:
        if rollouts.get().in_force == CANARY:  # an earlier test promoted it
            begin(rollouts, STABLE)
            rollouts.promote()
        begin(rollouts, CANARY)
        yield rollouts
        if rollouts.get().phase == rollout_pb2.ROLLOUT_PHASE_RUNNING:
            rollouts.roll_back()


def begin(rollouts: Rollouts, canary: str) -> None:
    """Begin a rollout, and wait for its first step."""
    rollouts.set(rollout_pb2.RolloutPlan(canary=canary, steps=PLAN.steps, guard=PLAN.guard))
    next(one for one in rollouts.watch() if one.phase == rollout_pb2.ROLLOUT_PHASE_RUNNING)


@at_both_widths
def test_the_numbers_follow_the_questions(demo: DemoStack, visit: Open, make_scene_image: Callable[[], bytes]) -> None:
    opened = visit(demo.url)
    page = opened.page
    opened.drop(make_scene_image())
    opened.ask("Describe the picture.")
    opened.wait_for_answer()
    page.click("text=Ask again")
    page.wait_for_selector(".report .badge.good")
    page.click("#tab-operations")
    page.wait_for_selector(".release-name")
    shown = page.inner_text("#operations")
    for text in (STABLE, "100 %", "In force", "KV cache, replica 1", "of images were not encoded again"):
        assert text in shown
    assert "no requests" not in shown
    answered = int(page.inner_text(".measure:nth-child(2) dd").split()[0])
    assert answered >= 2
    page.click("#tab-ask")
    opened.ask("What is it?")
    opened.wait_for_answer()
    page.click("#tab-operations")
    page.wait_for_selector(f".measure:nth-child(2) dd:has-text('{answered + 1}')")


def test_an_operator_promotes_with_a_reason(
    demo: DemoStack, rollout: Rollouts, visit: Open, make_scene_image: Callable[[], bytes], keep_screen: Keep
) -> None:
    opened = visit(demo.url)
    page = opened.page
    for _ in range(4):  # conversations of their own, so both releases get some
        opened.drop(make_scene_image())
        opened.ask("Describe the picture.")
        opened.wait_for_answer()
        page.click("text=Ask again")
        page.wait_for_selector(".report .badge.good")
        page.click("#new-conversation")
    page.click("#tab-operations")
    page.wait_for_selector("text=Running")
    page.wait_for_timeout(2500)  # some points for the line
    keep_screen(opened, "operations", full_page=True)
    assert page.inner_text("[aria-current=step]") == "50 %"
    table = page.inner_text("table")
    for text in ("Error rate", "First token", "Empty answers", "Requests"):
        assert text in table

    page.click(".rollout-actions >> text=Promote")
    page.wait_for_selector("#confirm[open]")
    assert page.inner_text("#confirm-title") == f"Promote {CANARY}?"
    keep_screen(opened, "confirm")
    page.click("#confirm >> text=Cancel")
    assert rollout.get().phase == rollout_pb2.ROLLOUT_PHASE_RUNNING

    page.click(".rollout-actions >> text=Promote")
    page.fill("#confirm-reason", "<b>it is better</b>")
    page.click("#confirm-go")
    page.wait_for_selector("text=Promoted")
    page.wait_for_selector("text=<b>it is better</b>")
    assert rollout.get().in_force == CANARY


def test_an_operator_rolls_back(demo: DemoStack, rollout: Rollouts, visit: Open) -> None:
    page = visit(demo.url, "/#operations").page
    page.click(".rollout-actions >> text=Roll back")
    page.click("#confirm-go")
    page.wait_for_selector("text=An operator rolled it back.")
    assert rollout.get().in_force == STABLE


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[str]:
    """Yield the door of a gateway that knows two keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(tenant_entry("shop", "shops-key") + tenant_entry("ops", "operators-key", role="operator"))
    config = StackConfig(
        models=store,
        release="tiny-v1.0.0",
        precision="float32",
        threads=1,
        drain_s=2,
        gateway_flags=["--keys", str(keys)],
        http_port=0,
    )
    with Stack(config) as stack:
        yield f"http://{stack.address_of('http')}"


def test_keys_open_what_they_are_for(guarded: str, visit: Open, keep_screen: Keep) -> None:
    opened = visit(guarded)
    page = opened.page
    page.wait_for_selector("#key-needed:visible")
    page.fill("#api-key", "shops-key")
    page.click("#settings footer button")
    opened.ask("What is it?")
    assert opened.wait_for_answer()

    page.click("#tab-operations")
    page.wait_for_selector("text=An operator's API key is needed")
    keep_screen(opened, "key-needed")
    page.click("text=Enter an API key")
    page.fill("#api-key", "operators-key")
    page.click("#settings footer button")
    page.wait_for_selector(".release-name")

    page.reload()  # this tab keeps the key
    page.wait_for_selector(".release-name")
    assert "operators-key" not in page.evaluate("JSON.stringify(localStorage)")


def test_a_wrong_key_is_named(guarded: str, visit: Open) -> None:
    opened = visit(guarded)
    page = opened.page
    page.wait_for_selector("#key-needed:visible")
    page.fill("#api-key", "no-key-of-anyone")
    page.click("#settings footer button")
    page.wait_for_selector("#key-needed:visible")
    page.keyboard.press("Escape")
    opened.ask("What is it?")
    page.wait_for_selector("text=The server refuses this API key.")
