"""Groups of pods that run vLLM on several nodes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chassis.settings import load_settings
from language_service.service import LanguageSettings
from tests.k8s.static.manifests import K8S, TOOLS, build, objects, run, settings_of, tool
from tests.k8s.static.test_overlays import VERSIONS

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]

SCHEMA = Path(__file__).parent / "leaderworkerset.json"
# Prints each problem of a file under a schema. The library comes with kubernetes-validate.
VALIDATE = """
import json, sys
from jsonschema import Draft202012Validator
schema, instance = (json.load(open(path)) for path in sys.argv[1:])
Draft202012Validator.check_schema(schema)
for error in Draft202012Validator(schema).iter_errors(instance):
    print(error.message)
"""
TEMPLATES = ("leaderTemplate", "workerTemplate")


@pytest.fixture(scope="module")
def overlay() -> list[dict[str, Any]]:
    return objects(build(K8S / "overlays" / "vllm"))


@pytest.fixture(scope="module")
def group(overlay: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [one for one in overlay if one["kind"] == "LeaderWorkerSet"]
    return found


def templates(group: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["spec"]["leaderWorkerTemplate"][name] for name in TEMPLATES]


def one_of(overlay: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in overlay if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def problems(group: dict[str, Any], folder: Path) -> str:
    """Return what the schema finds."""
    file = folder / "group.json"
    file.write_text(json.dumps(group))
    done = run(TOOLS / "bin" / "python", "-c", VALIDATE, SCHEMA, file)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_group_validates_strictly(group: dict[str, Any], tmp_path: Path) -> None:
    assert problems(group, tmp_path) == ""
    wrong = json.loads(json.dumps(group))
    wrong["spec"]["leaderWorkerTemplate"]["restartPolicy"] = "Always"
    assert "'Always' is not one of" in problems(wrong, tmp_path)
    wrong = {**group, "spec": {**group["spec"], "replica": 2}}
    assert "'replica' was unexpected" in problems(wrong, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_its_pods_validate_strictly(version: str, group: dict[str, Any], tmp_path: Path) -> None:
    """As PodTemplate, since validators do not know the group."""
    pods = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name.lower()}, "template": template}
        for name, template in zip(TEMPLATES, templates(group), strict=True)
    ]
    file = tmp_path / "pods.yaml"
    file.write_text(yaml.safe_dump_all(pods))
    done = run(tool("kubernetes-validate"), "-k", version, "--strict", "--quiet", "--no-warn", file)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_named_config_map_exists(overlay: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """Their names have a hash, in references, too."""
    maps = {one["metadata"]["name"] for one in overlay if one["kind"] == "ConfigMap"}
    for template in templates(group):
        (container,) = template["spec"]["containers"]
        sources = [one.get("valueFrom", {}) for one in container["env"]]
        named = {one["configMapRef"]["name"] for one in container["envFrom"]}
        named |= {one["configMapKeyRef"]["name"] for one in sources if "configMapKeyRef" in one}
        assert len(named) == 2
        assert named <= maps


def read_settings(
    overlay: list[dict[str, Any]], template: dict[str, Any], worker_index: int, monkeypatch: pytest.MonkeyPatch
) -> LanguageSettings:
    """Return a pod's settings, with its group's variables."""
    (container,) = template["spec"]["containers"]
    (source,) = container["envFrom"]
    for variable, value in one_of(overlay, "ConfigMap", source["configMapRef"]["name"])["data"].items():
        monkeypatch.setenv(variable, value)
    for one in container["env"]:
        if "value" in one:
            monkeypatch.setenv(one["name"], one["value"])
    monkeypatch.setenv("TANDEM_LANGUAGE_DEVICE", "cpu")  # this machine has no GPU
    monkeypatch.setenv("TANDEM_LANGUAGE_TAGS", "model-8b-vllm-v1.0.0")
    variables = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(worker_index), "LWS_LEADER_ADDRESS": "language-vllm-0"}
    arguments = [re.sub(r"\$\((\w+)\)", lambda name: variables[name[1]], word) for word in container["args"]]
    return load_settings(LanguageSettings, arguments)


def test_a_leader_serves_and_a_follower_follows(
    overlay: list[dict[str, Any]], group: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = templates(group)
    settings = read_settings(overlay, follower, 1, monkeypatch)
    assert settings.is_follower
    assert (settings.listen, settings.tls_cert, settings.tls_client_ca) == ("127.0.0.1:50052", None, None)
    arguments = settings.engine_args
    num_gpus = int(follower["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert arguments["nnodes"] == group["spec"]["leaderWorkerTemplate"]["size"]
    assert arguments["tensor_parallel_size"] == arguments["nnodes"] * num_gpus

    for variable in ("LISTEN", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "TLS_CLIENTS"):
        monkeypatch.delenv(f"TANDEM_LANGUAGE_{variable}")
    secret = tmp_path / "any"
    secret.touch()
    (source,) = leader["spec"]["containers"][0]["envFrom"]
    values = one_of(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    files = {name: str(secret) for name, value in values.items() if value.startswith("/etc/tandem/")}
    assert len(files) == 3
    (container,) = leader["spec"]["containers"]
    container["env"] += [{"name": name, "value": value} for name, value in files.items()]
    settings = read_settings(overlay, leader, 0, monkeypatch)
    assert not settings.is_follower
    assert settings.listen == "0.0.0.0:50052"


def test_the_policy_admits_the_ports_of_vllm_alone(overlay: list[dict[str, Any]], group: dict[str, Any]) -> None:
    policy = one_of(overlay, "NetworkPolicy", "language-vllm")["spec"]
    for template in templates(group):
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        (sysctl,) = template["spec"]["securityContext"]["sysctls"]
        assert sysctl["name"] == "net.ipv4.ip_local_port_range"
        first, last = map(int, sysctl["value"].split())
        (engine_args,) = [word for word in template["spec"]["containers"][0]["args"] if "master_port" in word]
        (master,) = map(int, re.findall(r'"master_port": (\d+)', engine_args))
        for (rule,) in (policy["ingress"], policy["egress"]):
            assert rule["ports"] == [{"port": master}, {"port": first, "endPort": last}]
        own = {port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert not {port for port in own if first <= port <= last or port == master}


def test_a_follower_computes_until_its_leader_has_finished_its_answers(group: dict[str, Any]) -> None:
    leader, follower = (template["spec"] for template in templates(group))
    drain_s = float(settings_of("language")["TANDEM_LANGUAGE_DRAIN_S"])
    pause_s = leader["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    _, sleep_s = follower["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pause_s + drain_s <= float(sleep_s) < follower["terminationGracePeriodSeconds"]


def test_all_that_the_group_needs_can_come_first(overlay: list[dict[str, Any]]) -> None:
    """By `kubectl apply -l tandem.dev/engine=vllm`, beside our engine."""
    first = {
        f"{one['kind']}/{one['metadata']['name']}"
        for one in overlay
        if one["metadata"].get("labels", {}).get("tandem.dev/engine") == "vllm"
    }
    names = {name.rpartition("-")[0] if name.startswith("ConfigMap/") else name for name in first}
    assert names == {
        "LeaderWorkerSet/language-vllm",
        "NetworkPolicy/language-vllm",
        "ConfigMap/release",
        "ConfigMap/language-settings",
    }
    assert len(first) == len(names)
    production = [one["metadata"]["name"] for one in objects(build(K8S / "overlays" / "production"))]
    assert not {name.partition("/")[2] for name in first} & set(production)


def test_nothing_else_of_production_is_lost(overlay: list[dict[str, Any]]) -> None:
    def names(found: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {(one["kind"], one["metadata"]["name"]) for one in found if one["kind"] != "ConfigMap"}

    production = objects(build(K8S / "overlays" / "production"))
    added = {("LeaderWorkerSet", "language-vllm"), ("NetworkPolicy", "language-vllm")}
    assert names(production) - names(overlay) == {("Deployment", "language")}
    assert names(overlay) - names(production) == added
    scaled = one_of(overlay, "ScaledObject", "language")["spec"]["scaleTargetRef"]
    assert scaled == {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "language-vllm"}
