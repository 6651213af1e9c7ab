"""Names in the manifests exist in the code."""

import re
from importlib import import_module
from typing import Any

import pytest
from prometheus_client import REGISTRY

from chassis.process import STOP_S
from chassis.settings import ProcessSettings
from gateway.settings import GatewaySettings
from gateway.stages.releases import STABLE_HEALTH_NAME
from http_gateway.app import ROUTES
from http_gateway.door import HttpSettings
from language_service.service import LanguageSettings
from language_service.servicer import SERVICE_NAME as LANGUAGE
from tests.k8s.static.manifests import (
    K8S,
    REPOSITORY,
    alerts,
    containers,
    files,
    objects,
    panels,
    scalers,
    settings_of,
    sources,
)
from vision_service.service import VisionSettings
from vision_service.servicer import SERVICE_NAME as VISION

SERVICES: dict[str, type[ProcessSettings]] = {
    "gateway": GatewaySettings,
    "http": HttpSettings,
    "vision": VisionSettings,
    "language": LanguageSettings,
}
VARIABLES = {
    f"{settings.model_config['env_prefix']}{field.upper()}"
    for settings in SERVICES.values()
    for field in settings.model_fields
}
READINESS = {"gateway": STABLE_HEALTH_NAME, "vision": VISION, "language": LANGUAGE}

each_service = pytest.mark.parametrize(("name", "pod", "container"), list(containers()), ids=lambda one: str(one)[:8])
each_grpc_service = pytest.mark.parametrize(
    ("name", "pod", "container"), list(containers(tuple(READINESS))), ids=lambda one: str(one)[:8]
)


def test_every_variable_is_a_setting() -> None:
    named = {(path, name) for path, text in sources().items() for name in re.findall(r"\bTANDEM_[A-Z0-9_]+", text)}
    assert len(named) > 20
    assert not {(path, name) for path, name in named if name not in VARIABLES}


@each_service
def test_the_values_of_the_base_are_valid(
    name: str, pod: dict[str, Any], container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        **settings_of(name),
        "TANDEM_GATEWAY_RELEASE": "tandem-demo-v1.1.0",
        "TANDEM_GATEWAY_ALLOW_PLAINTEXT": "1",
        "TANDEM_HTTP_ALLOW_PLAINTEXT": "1",
    }
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    for prefix in ("GATEWAY", "VISION", "LANGUAGE"):
        monkeypatch.setenv(f"TANDEM_{prefix}_ALLOW_ANONYMOUS", "1")
    SERVICES[name]()


@pytest.mark.parametrize("stage", ["vision", "language"])
def test_a_stage_of_the_base_starts_only_with_certificates_or_a_flag(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in settings_of(stage).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match="--tls-client-ca"):
        SERVICES[stage]()


@pytest.mark.parametrize("name", SERVICES)
def test_the_values_of_compose_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (compose,) = objects((REPOSITORY / "compose.yaml").read_text())
    for variable, value in compose["services"][name]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    SERVICES[name]()


@each_grpc_service
def test_ports_agree_with_the_settings(name: str, pod: dict[str, Any], container: dict[str, Any]) -> None:
    settings, prefix = settings_of(name), f"TANDEM_{name.upper()}_"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (service,) = [one for one in objects((K8S / "base" / f"{name}.yaml").read_text()) if one["kind"] == "Service"]
    assert settings[f"{prefix}LISTEN"] == f"0.0.0.0:{ports['grpc']}"
    assert settings[f"{prefix}PROBE_LISTEN"] == f"0.0.0.0:{ports['probes']}"
    assert settings[f"{prefix}METRICS_HOST"] == "0.0.0.0"
    assert settings[f"{prefix}METRICS_PORT"] == str(ports["metrics"])
    assert [port["port"] for port in service["spec"]["ports"]] == [ports["grpc"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == ports["probes"]


@pytest.mark.parametrize("stage", ["vision", "language"])
def test_the_gateway_calls_the_ports_of_the_headless_services(stage: str) -> None:
    (service,) = [one for one in objects((K8S / "base" / f"{stage}.yaml").read_text()) if one["kind"] == "Service"]
    assert service["spec"]["clusterIP"] == "None"
    port = service["spec"]["ports"][0]["port"]
    assert settings_of("gateway")[f"TANDEM_GATEWAY_{stage.upper()}"] == f"dns:///{stage}:{port}"


def test_ports_and_probes_of_the_http_door_agree_with_its_settings_and_routes() -> None:
    """A lost gateway must restart no door."""
    ((_, _, container),) = containers(("http",))
    settings = settings_of("http")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (service,) = [one for one in objects((K8S / "base" / "http.yaml").read_text()) if one["kind"] == "Service"]
    assert settings["TANDEM_HTTP_LISTEN"] == f"0.0.0.0:{ports['http']}"
    assert settings["TANDEM_HTTP_METRICS_HOST"] == "0.0.0.0"
    assert settings["TANDEM_HTTP_METRICS_PORT"] == str(ports["metrics"])
    assert [port["port"] for port in service["spec"]["ports"]] == [ports["http"]]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {ports["http"]}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/healthz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert {"/healthz", "/readyz"} <= {getattr(route, "path", "") for route in ROUTES}


def test_the_http_door_calls_the_port_of_the_headless_gateway() -> None:
    (service,) = [one for one in objects((K8S / "base" / "gateway.yaml").read_text()) if one["kind"] == "Service"]
    port = service["spec"]["ports"][0]["port"]
    assert settings_of("http")["TANDEM_HTTP_GATEWAY"] == f"dns:///gateway:{port}"


@each_grpc_service
def test_readiness_asks_for_a_health_name_of_the_code(
    name: str, pod: dict[str, Any], container: dict[str, Any]
) -> None:
    assert container["readinessProbe"]["grpc"]["service"] == READINESS[name]
    # The name '' is NOT_SERVING until the models are loaded, so it serves the other probes.
    assert "service" not in container["startupProbe"]["grpc"]
    assert "service" not in container["livenessProbe"]["grpc"]


@each_service
def test_a_pod_may_finish_its_longest_answer(name: str, pod: dict[str, Any], container: dict[str, Any]) -> None:
    longest_s = float(settings_of("gateway")["TANDEM_GATEWAY_MAX_DEADLINE_S"])
    drain_s = float(settings_of(name)[f"TANDEM_{name.upper()}_DRAIN_S"])
    assert drain_s >= longest_s
    assert (
        pod["terminationGracePeriodSeconds"] >= container["lifecycle"]["preStop"]["sleep"]["seconds"] + drain_s + STOP_S
    )


def metric_names() -> set[str]:
    """Return the names of all series that a service exports."""
    for path in (
        REPOSITORY / name for name in ("chassis", "gateway", "http_gateway", "vision_service", "language_service")
    ):
        for source in path.rglob("*.py"):
            if re.search(r"= (?:Counter|Gauge|Histogram|Summary)\(", source.read_text()):
                import_module(".".join(source.relative_to(REPOSITORY).with_suffix("").parts))
    sums = ("_sum", "_count")
    suffixes = {"histogram": ("_bucket", *sums), "summary": sums, "counter": ("_total",), "gauge": ("",)}
    return {metric.name + suffix for metric in REGISTRY.collect() for suffix in suffixes.get(metric.type, ())}


def queries() -> dict[str, str]:
    """Return the queries of alerts, panels and autoscalers."""
    return {
        **{f"alert {rule['alert']}": rule["expr"] for rule in alerts()},
        **{f"panel {name}": query for name, query in panels()},
        **{f"scaling {name}": query for name, query in scalers()},
    }


@pytest.mark.parametrize(("place", "query"), queries().items(), ids=list(queries()))
def test_every_metric_in_a_query_is_exported(place: str, query: str) -> None:
    named = set(re.findall(r"\b(?:tandem|process|python)_[a-z0-9_]+", query))
    assert named or "up{" in query
    assert not named - metric_names()


def test_pod_metrics_of_the_autoscalers_are_exported() -> None:
    text = (K8S / "components" / "hpa" / "autoscalers.yaml").read_text()
    metrics = {metric["pods"]["metric"]["name"] for one in objects(text) for metric in one["spec"]["metrics"]}
    assert metrics
    assert not metrics - metric_names()


def test_every_alert_has_a_runbook() -> None:
    page = (REPOSITORY / "docs" / "runbooks.md").read_text()
    sections = {title.lower() for title in re.findall(r"^## (\w+)$", page, re.MULTILINE)}
    assert {rule["annotations"]["runbook"] for rule in alerts()} == {f"docs/runbooks.md#{name}" for name in sections}


def test_modules_in_commands_exist() -> None:
    for name, _pod, container in containers():
        module = container["command"][2]
        assert container["command"][:2] == ["python", "-m"], name
        assert (REPOSITORY / module / "__main__.py").exists()


def test_every_file_says_who_owns_its_objects() -> None:
    """A header comment explains the lines that are not defaults."""
    assert not [path for path in files() if not path.read_text().startswith("# ")]
