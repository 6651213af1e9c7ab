"""Build kustomizations and find the tools of `tests/k8s/install_tools`."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[3]
TOOLS = REPOSITORY / ".venv-k8s"
K8S = REPOSITORY / "k8s"
COMPONENTS = sorted(folder.name for folder in (K8S / "components").iterdir())
OVERLAYS = sorted(folder.name for folder in (K8S / "overlays").iterdir())
DELIVERIES = [name for name in COMPONENTS if name.startswith("models-")]
MONITORING = K8S / "components" / "monitoring"


def tool(name: str) -> str:
    """Return the path of a program."""
    found = shutil.which(name, path=f"{TOOLS / 'bin'}:{os.environ['PATH']}")
    assert found, f"{name} is missing: run tests/k8s/install_tools"
    return found


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program and return its output."""
    path = f"{TOOLS / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "PATH": path},
    )


@cache
def build(folder: Path) -> str:
    """Return the YAML of a kustomization.

    Raises:
        AssertionError: it does not build. The message is kubectl's.
    """
    done = run(tool("kubectl"), "kustomize", folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[dict[str, Any]]:
    """Parse YAML documents."""
    return [one for one in yaml.safe_load_all(text) if one is not None]


def files() -> list[Path]:
    """Return every YAML file of the manifests."""
    return sorted(K8S.rglob("*.yaml"))


def sources() -> dict[str, str]:
    """Return the files that name settings, by path."""
    paths = [*files(), *K8S.rglob("*.env"), REPOSITORY / "compose.yaml"]
    return {str(path.relative_to(REPOSITORY)): path.read_text() for path in paths}


def containers(
    names: Sequence[str] = ("vision", "language", "gateway", "http"),
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield name, pod and main container of each Deployment."""
    for name in names:
        for one in objects((K8S / "base" / f"{name}.yaml").read_text()):
            if one["kind"] == "Deployment":
                pod = one["spec"]["template"]["spec"]
                yield name, pod, pod["containers"][0]


def settings_of(name: str) -> dict[str, str]:
    """Return the variables of a service in the base."""
    lines = (K8S / "base" / f"{name}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def alerts() -> list[dict[str, Any]]:
    """Return the alerting rules."""
    (rule,) = objects((MONITORING / "alerts.yaml").read_text())
    return [rule for group in rule["spec"]["groups"] for rule in group["rules"]]


def panels() -> Iterator[tuple[str, str]]:
    """Yield name and query of each target of the dashboard."""
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


def scalers() -> Iterator[tuple[str, str]]:
    """Yield name and query of each trigger of KEDA."""
    for path in files():
        for one in objects(path.read_text()):
            if one.get("kind") == "ScaledObject":
                for number, trigger in enumerate(one["spec"]["triggers"]):
                    yield f"{path.stem} {number}", trigger["metadata"]["query"]
