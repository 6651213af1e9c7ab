"""promtool finds that each alert fires at its fault alone."""

import json
from pathlib import Path

import pytest
import yaml

from tests.k8s.static.manifests import alerts, run, tool

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(120)]

_GENERATE = 'tandem_rpc_requests_total{method="tandem.v1.Gateway/Generate", code="%s"}'
_HTTP = 'tandem_http_requests_total{path="/v1/chat/completions", status="%s"}'
_TTFT = 'tandem_gateway_time_to_first_token_seconds_bucket{release="a", le="%s"}'
_QUEUE = 'tandem_vision_queue_seconds_bucket{tag="a", le="%s"}'
_UP = 'up{service="%s", pod="%s-0"}'

# Series of a healthy stack, one value a minute for half an hour.
HEALTHY = {
    **{_UP % (name, name): "1x30" for name in ("gateway", "http", "vision", "language")},
    'process_start_time_seconds{service="vision", pod="vision-0"}': "100x30",
    _GENERATE % "OK": "0+600x30",
    _GENERATE % "UNAVAILABLE": "0+6x30",
    _GENERATE % "RESOURCE_EXHAUSTED": "0+6x30",
    _GENERATE % "INVALID_ARGUMENT": "0+600x30",
    _HTTP % "200": "0+600x30",
    _HTTP % "400": "0+600x30",
    _HTTP % "503": "0+6x30",
    _TTFT % "0.5": "0+100x30",
    _TTFT % "10": "0+100x30",
    _TTFT % "+Inf": "0+100x30",
    _QUEUE % "0.1": "0+100x30",
    _QUEUE % "10": "0+100x30",
    _QUEUE % "+Inf": "0+100x30",
    'tandem_language_waiting{tag="a", pod="language-0"}': "4x30",
    'tandem_language_preemptions_total{tag="a"}': "0x30",
    'tandem_language_failed_steps_total{tag="a", pod="language-0"}': "0x30",
    'tandem_gateway_encode_errors_total{reason="BAD_IMAGE"}': "0+60x30",
    'tandem_gateway_encode_errors_total{reason="VISION_UNREACHABLE"}': "0x30",
    "tandem_gateway_crossed_visual_tokens_total": "0x30",
    "tandem_gateway_shared_cache_breaker_open": "0x30",
    "tandem_rollout_store_up": "1x30",
    'tandem_rollout_guard_age_seconds{pod="gateway-0"}': "1x30",
    'tandem_rollout_phase{phase="rolled_back"}': "0x30",
    'tandem_rollout_phase{phase="running"}': "1x30",
    'tandem_rollout_decisions_total{event="rolled_back", metric="quality"}': "0x30",
    'tandem_rollout_decisions_total{event="promoted", metric=""}': "0x20 1x10",
}

# The series that a fault changes, by alert. Faults begin after ten healthy minutes.
FAULTS = {
    "TandemServiceDown": {_UP % ("vision", "vision"): "1x10 0x20"},
    "TandemReplicaDown": {_UP % ("vision", "vision"): "1x10 0x20"},
    "TandemRestarts": {'process_start_time_seconds{service="vision", pod="vision-0"}': "100x22 200 300 400 400x5"},
    "TandemRequestsFail": {_GENERATE % "UNAVAILABLE": "0x10 0+60x20"},
    "TandemHttpRequestsFail": {_HTTP % "503": "0x10 0+60x20"},
    "TandemRequestsRefused": {_GENERATE % "RESOURCE_EXHAUSTED": "0x10 0+120x20"},
    "TandemFirstTokenSlow": {_TTFT % "0.5": "0x30"},
    "TandemLanguageQueueLong": {'tandem_language_waiting{tag="a", pod="language-0"}': "4x10 40x20"},
    "TandemKvCacheFull": {'tandem_language_preemptions_total{tag="a"}': "0x10 0+60x20"},
    "TandemLanguageStepsFail": {'tandem_language_failed_steps_total{tag="a", pod="language-0"}': "0x26 1x4"},
    "TandemVisionQueueSlow": {_QUEUE % "0.1": "0x30"},
    "TandemImagesFail": {'tandem_gateway_encode_errors_total{reason="VISION_UNREACHABLE"}': "0x10 0+60x20"},
    "TandemVisualTokensCrossed": {"tandem_gateway_crossed_visual_tokens_total": "0x26 1x4"},
    "TandemSharedCacheDown": {"tandem_gateway_shared_cache_breaker_open": "0x10 1x20"},
    "TandemRolloutStoreDown": {"tandem_rollout_store_up": "1x10 0x20"},
    "TandemCanaryAnswersWorse": {'tandem_rollout_decisions_total{event="rolled_back", metric="quality"}': "0x20 1x10"},
    "TandemRolloutGuardSilent": {'tandem_rollout_guard_age_seconds{pod="gateway-0"}': "1x10 0+60x20"},
    "TandemRolledBack": {'tandem_rollout_phase{phase="rolled_back"}': "0x10 1x20"},
}
# Alerts that this fault rightly causes as well.
ALSO = {"TandemServiceDown": {"TandemReplicaDown"}, "TandemReplicaDown": {"TandemServiceDown"}}


@pytest.fixture(scope="session")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the rules as Prometheus reads them."""
    file = tmp_path_factory.mktemp("alerts") / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "tandem", "rules": alerts()}]}))
    return file


def firing(rules: Path, series: dict[str, str]) -> set[str]:
    """Return the alerts that fire after half an hour.

    promtool compares with the labels that are expected, so it is told to expect nothing, and prints the difference.
    """
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": "30m", "alertname": rule["alert"], "exp_alerts": []} for rule in alerts()
                ],
            }
        ],
    }
    file = rules.parent / "test.json"
    file.write_text(json.dumps(test))
    done = run(tool("promtool"), "test", "rules", file)
    output = done.stdout + done.stderr
    names = {rule["alert"] for rule in alerts()}
    fired = {name for name in names if f'alertname="{name}"' in output}
    assert (done.returncode == 0) == (not fired), output
    return fired


def test_promtool_accepts_the_rules(rules: Path) -> None:
    done = run(tool("promtool"), "check", "rules", rules)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_fires_on_a_healthy_stack(rules: Path) -> None:
    assert firing(rules, HEALTHY) == set()


def test_every_alert_has_a_fault() -> None:
    assert {rule["alert"] for rule in alerts()} == FAULTS.keys()


@pytest.mark.parametrize("name", FAULTS)
def test_an_alert_fires_at_its_fault_alone(name: str, rules: Path) -> None:
    assert FAULTS[name].keys() <= HEALTHY.keys()
    assert firing(rules, HEALTHY | FAULTS[name]) == {name, *ALSO.get(name, ())}
