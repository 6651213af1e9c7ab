"""The bar of an answer's times."""

import pytest

from tests.http_gateway.page.conftest import DemoStack, Open

pytestmark = pytest.mark.http


def test_times_of_any_answer_add_up(demo: DemoStack, visit: Open) -> None:
    """However the stages overlap."""
    wrong = visit(demo.url).page.evaluate(
        """async () => {
            const { timeline } = await import('/page/timeline.js');
            const names = ['prepare', 'vision', 'queue', 'prefill', 'first_token', 'decode', 'total'];
            const wrong = [];
            for (let round = 0; round < 5000; round++) {
                const draw = () => (Math.random() < 0.2 ? 0 : 1000 * Math.random());
                const times = Object.fromEntries(names.map((name) => [name, draw()]));
                const parts = Object.values(timeline(times));
                const sum = parts.reduce((one, other) => one + other, 0);
                const total = Math.max(times.total, times.first_token);
                if (parts.some((part) => part < 0) || Math.abs(sum - total) > 1e-6) wrong.push(times);
            }
            return wrong.slice(0, 3);
        }"""
    )
    assert wrong == []
