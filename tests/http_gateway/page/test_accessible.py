"""What axe-core finds, in both colour schemes and at both widths."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.http_gateway.page.conftest import DemoStack, Keep, Open, at_both_widths

pytestmark = pytest.mark.http

# Findings of these impacts fail. The rest are printed.
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def axe() -> str:
    return (Path(os.environ["TANDEM_NODE"]) / "node_modules" / "axe-core" / "axe.min.js").read_text()


def findings(page: Any, axe: str) -> list[str]:
    """Return the serious findings of axe-core."""
    page.evaluate(axe)
    run = "const { passes, violations } = await axe.run(); return { passes: passes.length, violations };"
    result = page.evaluate(f"async () => {{ {run} }}")
    assert result["passes"] > 20, "axe-core did not see the page"
    found = result["violations"]
    for one in found:
        print(one["impact"], one["id"], one["help"])
    return [
        f"{one['id']}: {node['html']} {node['failureSummary']}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@at_both_widths
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_of_the_page_has_a_serious_finding(
    demo: DemoStack, visit: Open, axe: str, scheme: str, keep_screen: Keep
) -> None:
    opened = visit(demo.url, color_scheme=scheme, reduced_motion="reduce")
    page = opened.page
    page.wait_for_selector("#connection[data-state=ready]")
    found = {"welcome": findings(page, axe)}
    page.click(".sample:first-child li:first-child button")
    opened.wait_for_answer()
    found["answer"] = findings(page, axe)
    if scheme == "dark":
        keep_screen(opened, "dark")
    opened.ask("?" * 12_000)
    page.wait_for_selector(".failure")
    found["error"] = findings(page, axe)
    page.click("#open-settings")
    found["settings"] = findings(page, axe)
    page.keyboard.press("Escape")
    page.click("#tab-operations")
    page.wait_for_selector(".release-name")
    found["operations"] = findings(page, axe)
    assert not {state: some for state, some in found.items() if some}


@at_both_widths
def test_no_view_is_wider_than_the_screen(demo: DemoStack, visit: Open) -> None:
    opened = visit(demo.url)
    page = opened.page
    overflows = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflows) == 0
    opened.ask("wide" * 400)
    page.wait_for_selector("#turns > li:not([data-status=running])")
    assert page.evaluate(overflows) == 0
    page.click("#tab-operations")
    page.wait_for_selector(".release-name")
    assert page.evaluate(overflows) == 0


def test_motion_is_reduced_where_the_visitor_asks(demo: DemoStack, visit: Open) -> None:
    durations = []
    for wish in ("no-preference", "reduce"):
        page = visit(demo.url, reduced_motion=wish).page
        durations.append(
            page.evaluate(
                """() => {
                    const node = document.body.appendChild(document.createElement('div'));
                    node.className = 'skeleton';
                    return parseFloat(getComputedStyle(node).animationDuration);
                }"""
            )
        )
    assert durations[0] > 1
    assert durations[1] < 0.001
