"""Every overlay and combination of components builds and validates."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.static.manifests import COMPONENTS, DELIVERIES, K8S, OVERLAYS, TOOLS, build, objects, run, tool
from tests.k8s.static.test_names import SERVICES

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]

VERSIONS = ("1.31", "1.37")
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule"}

# Components that go together or exclude each other. The canary copies the pods of all others, so it comes last. So does
# vllm, which moves the pods of the language service.
_OTHERS = [name for name in COMPONENTS if name not in (*DELIVERIES, "keda", "hpa", "canary", "vllm")]
COMBINATIONS = {
    **{name: [name] for name in COMPONENTS},
    **{f"all with {name} and keda": [name, *_OTHERS, "keda", "canary"] for name in DELIVERIES},
    **{f"all with {name} and hpa": [name, *_OTHERS, "hpa", "canary"] for name in DELIVERIES},
    **{f"all with {name} and vllm": [name, *_OTHERS, "hpa", "vllm"] for name in DELIVERIES},
}

# Checks of checkov that do not apply, with the reason.
SKIPPED = {
    "CKV_K8S_11": "no cpu limits: throttling would delay tokens, and cpu requests already share a node",
    "CKV_K8S_15": "tags are never overwritten, so pulling them again at every start gains nothing",
    "CKV_K8S_43": "the digest is the operator's: overlays set the registry and the tag",
}


def combine(folder: Path, names: list[str]) -> str:
    """Build the base with some components."""
    folder.mkdir()
    canary = [{"name": "release-canary", "literals": ["vision=a-v1.0.0", "language=a-v1.0.0"]}]
    kustomization = {
        "resources": [os.path.relpath(K8S / "base", folder)],
        "components": [os.path.relpath(K8S / "components" / name, folder) for name in names],
        "namespace": "tandem",
        "configMapGenerator": canary if "canary" in names else [],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return build(folder)


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a file for each overlay and combination."""
    folder = tmp_path_factory.mktemp("rendered")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = {f"overlay-{name}": pool.submit(build, K8S / "overlays" / name) for name in OVERLAYS}
        for name, components in COMBINATIONS.items():
            texts[f"with-{name}"] = pool.submit(combine, folder / name, components)
    for name, text in texts.items():
        (folder / f"{name.replace(' ', '-')}.yaml").write_text(text.result())
    return sorted(folder.glob("*.yaml"))


@pytest.fixture(scope="session")
def every_object(rendered: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with each different object once."""
    documents = dict.fromkeys(text for path in rendered for text in path.read_text().rstrip().split("\n---\n"))
    file = tmp_path_factory.mktemp("objects") / "objects.yaml"
    file.write_text("\n---\n".join(documents))
    return file


@pytest.fixture(scope="session")
def checks(rendered: list[Path], every_object: Path) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Yield the runs of the validators, which share the processors."""
    overlays = [word for path in rendered if path.name.startswith("overlay-") for word in ("--file", str(path))]
    flags = ("--framework", "kubernetes", "--compact", "--quiet", "--skip-check", ",".join(SKIPPED))
    commands = {"checkov": (tool("checkov"), *overlays, *flags)}
    for version in VERSIONS:
        flags = ("-k", version, "--strict", "--quiet", "--no-warn", str(every_object))
        commands[version] = (tool("kubernetes-validate"), *flags)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(run, *command) for name, command in commands.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_validates_strictly(version: str, checks: dict[str, Future[Any]]) -> None:
    done = checks[version].result()
    assert (done.returncode, done.stdout) == (0, "")


def test_checkov_finds_nothing_else(checks: dict[str, Future[Any]]) -> None:
    done = checks["checkov"].result()
    assert done.returncode == 0, done.stdout


def test_custom_resources_validate(every_object: Path) -> None:
    custom = [one for one in objects(every_object.read_text()) if one["kind"] in CUSTOM]
    assert {one["kind"] for one in custom} == CUSTOM
    script = Path(__file__).parent / "validate_custom.mjs"
    done = subprocess.run(
        [tool("node"), script, TOOLS], input=json.dumps(custom), capture_output=True, encoding="utf-8"
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """Return the pods of an overlay by service."""
    found = {}
    for one in objects(build(K8S / "overlays" / overlay)):
        if one["kind"] == "Deployment":
            found[one["metadata"]["name"]] = one["spec"]["template"]["spec"]
        elif one["kind"] == "LeaderWorkerSet":
            for template in ("leaderTemplate", "workerTemplate"):
                pod = one["spec"]["leaderWorkerTemplate"][template]
                found[pod["metadata"]["labels"]["app.kubernetes.io/name"]] = pod["spec"]
    return found


def test_a_canary_differs_from_stable_by_its_tag_alone() -> None:
    found = pods("canary")
    for stage in ("vision", "language"):
        stable, canary = found[stage], found[f"{stage}-canary"]
        for pod in (stable, canary):
            (tag,) = [one for one in pod["containers"][0]["env"] if one["name"] == f"TANDEM_{stage.upper()}_TAGS"]
            pod["release"] = tag["valueFrom"]["configMapKeyRef"].pop("name")
        assert canary.pop("release").startswith("release-canary-")
        assert not stable.pop("release").startswith("release-canary-")
        assert canary == stable


def test_the_canary_overlay_changes_no_object_of_production() -> None:
    production, canary = (objects(build(K8S / "overlays" / name)) for name in ("production", "canary"))
    assert [one for one in production if one not in canary] == []
    added = {f"{one['kind']}/{one['metadata']['name']}" for one in canary if one not in production}
    (release,) = [name for name in added if name.startswith("ConfigMap/release-canary-")]
    assert added == {"Deployment/vision-canary", "Deployment/language-canary", release}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted_with_a_read_only_root(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert not context["allowPrivilegeEscalation"], name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_policy_admits_the_probe_port(overlay: str) -> None:
    found = [one for one in objects(build(K8S / "overlays" / overlay)) if one["kind"] == "NetworkPolicy"]
    # The ports between the machines of vLLM have a test of their own.
    policies = [one for one in found if one["metadata"]["name"] != "language-vllm"]
    admitted = {port["port"] for one in policies for rule in one["spec"].get("ingress", []) for port in rule["ports"]}
    assert 50060 not in admitted
    assert not policies or admitted == {8080, 50050, 50051, 50052, 6379, 4317, 9090}


@pytest.mark.parametrize("name", list(SERVICES))
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_of_an_overlay_are_valid(
    overlay: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for GPUs, which this machine lacks."""
    secret = tmp_path / "any"
    secret.touch()
    found = objects(build(K8S / "overlays" / overlay))
    data = {one["metadata"]["name"]: one["data"] for one in found if one["kind"] == "ConfigMap"}
    (source,) = pods(overlay)[name]["containers"][0]["envFrom"]
    for variable, value in data[source["configMapRef"]["name"]].items():
        if not value.startswith("cuda"):
            monkeypatch.setenv(variable, str(secret) if value.startswith("/etc/tandem/") else value)
    monkeypatch.setenv("TANDEM_GATEWAY_RELEASE", "tandem-demo-v1.1.0")
    monkeypatch.setenv("TANDEM_GATEWAY_ALLOW_PLAINTEXT", "true")
    monkeypatch.setenv("TANDEM_GATEWAY_ALLOW_ANONYMOUS", "true")
    monkeypatch.setenv("TANDEM_HTTP_ALLOW_PLAINTEXT", "true")
    SERVICES[name]()


def test_a_plan_of_a_canary_is_the_canary_overlay() -> None:
    release = (K8S / "overlays" / "canary" / "release.env").read_text()
    tag = next(line.removeprefix("vision=") for line in release.splitlines() if line.startswith("vision="))
    done = run(sys.executable, "-m", "tandem", "deploy", "plan", tag, "--overlay", K8S / "overlays/production")
    assert done.returncode == 0, done.stderr
    production, canary = (objects(build(K8S / "overlays" / name)) for name in ("production", "canary"))
    assert objects(done.stdout) == [one for one in canary if one not in production]


def test_gateways_of_production_sign_visual_tokens_with_a_secret() -> None:
    pod = pods("production")["gateway"]
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "shared-cache"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == "shared-cache"]
    assert volume["secret"] == {"secretName": "shared-cache", "defaultMode": 0o440}
    built = objects(build(K8S / "overlays" / "production"))
    (settings,) = [one["data"] for one in built if one["metadata"]["name"].startswith("gateway-settings")]
    assert settings["TANDEM_GATEWAY_SHARED_CACHE_SECRET_FILE"] == f"{mount['mountPath']}/secret"
