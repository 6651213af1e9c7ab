"""A real Prometheus evaluates every query against a running stack."""

import pytest

from tests.k8s.static.conftest import Prometheus
from tests.k8s.static.manifests import alerts, panels, scalers

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(300)]


def test_no_panel_is_empty_after_one_question(prometheus: Prometheus) -> None:
    assert [title for title, query in panels() if not prometheus.query(query)] == []


def test_every_query_of_an_autoscaler_has_one_value(prometheus: Prometheus) -> None:
    assert {name: len(prometheus.query(query)) for name, query in scalers()} == dict.fromkeys(dict(scalers()), 1)


def test_no_alert_holds_on_a_healthy_stack(prometheus: Prometheus) -> None:
    assert [rule["alert"] for rule in alerts() if prometheus.query(rule["expr"])] == []
