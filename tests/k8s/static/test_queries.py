"""A real Prometheus evaluates every query against a running stack."""

import io
import os
import signal
import time

import pytest
from PIL import Image

import tandem
from tandem.errors import TandemError
from tandem.stack import Stack
from tests.k8s.static.conftest import Prometheus
from tests.k8s.static.manifests import alerts, panels, scalers

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]


def test_no_panel_is_empty_after_one_question(prometheus: Prometheus) -> None:
    assert [title for title, query in panels() if not prometheus.query(query)] == []


def test_every_query_of_an_autoscaler_has_one_value(prometheus: Prometheus) -> None:
    assert {name: len(prometheus.query(query)) for name, query in scalers()} == dict.fromkeys(dict(scalers()), 1)


def test_no_alert_holds_on_a_healthy_stack(prometheus: Prometheus) -> None:
    assert [rule["alert"] for rule in alerts() if prometheus.query(rule["expr"])] == []


def test_alerts_hold_when_the_vision_service_is_killed(stack: Stack, prometheus: Prometheus) -> None:
    """The other faults are made from series in test_alerts.py."""
    os.kill(stack.pids["vision"], signal.SIGKILL)
    expressions = {rule["alert"]: rule["expr"] for rule in alerts()}
    with tandem.Client(stack.address) as client:
        for number in range(3):
            new_image = io.BytesIO()
            Image.new("RGB", (64, 64), (number, 0, 200)).save(new_image, "PNG")
            with pytest.raises(TandemError):
                client.ask("Is it red?", images=[new_image.getvalue()], max_tokens=4)
            time.sleep(2)  # a rate needs a scrape between two failures
    for name in ("TandemServiceDown", "TandemReplicaDown", "TandemRequestsFail"):
        prometheus.wait_for(expressions[name])
