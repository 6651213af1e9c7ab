"""`tandem deploy plan` prints the objects that a release changes."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tandem.commands.deploy import app

REPOSITORY = Path(__file__).parents[2]
# Prints a kustomization as kubectl does, or fails. It records the kustomization that was asked for.
FAKE_KUBECTL = """#!/bin/sh
cp "$2/kustomization.yaml" "$(dirname "$0")/asked"
test -z "$KUBECTL_FAILS" || { echo "error: $KUBECTL_FAILS" >&2; exit 1; }
cat "$(dirname "$0")/$(basename "$2" | grep -x overlay || echo changed)"
"""


def document(kind: str, name: str, value: str) -> str:
    return f"kind: {kind}\nmetadata:\n  labels:\n    name: no\n  name: {name}\n  namespace: here\nvalue: {value}\n"


@pytest.fixture
def overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an overlay, beside a component and a fake kubectl."""
    for folder in ("bin", "k8s/overlays/overlay", "k8s/components/canary"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "k8s/overlays/overlay/kustomization.yaml").touch()
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(FAKE_KUBECTL)
    kubectl.chmod(0o755)
    one, two, three = document("A", "same", "1"), document("A", "changes", "1"), document("B", "leaves", "1")
    (tmp_path / "bin" / "overlay").write_text("---\n".join([one, two, three]))
    changed, added = document("A", "changes", "2"), document("B", "comes", "1")
    (tmp_path / "bin" / "changed").write_text("---\n".join([one, changed, added]))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "k8s" / "overlays" / "overlay"


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def asked(overlay: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((overlay.parents[2] / "bin" / "asked").read_text())
    return found


def test_objects_that_differ_go_to_stdout_and_their_names_to_stderr(overlay: Path) -> None:
    result = plan("demo-v1.1.0", "--overlay", overlay)
    assert result.exit_code == 0
    assert [(one["kind"], one["metadata"]["name"], one["value"]) for one in yaml.safe_load_all(result.stdout)] == [
        ("A", "changes", 2),
        ("B", "comes", 1),
    ]
    assert result.stderr.splitlines() == ["change A/changes", "add    B/comes", "unused B/leaves"]


def test_a_canary_is_added_by_its_component(overlay: Path) -> None:
    plan("eyes-v1.0.0,words-v1.1.0", "--overlay", overlay)
    kustomization = asked(overlay)
    assert kustomization["namespace"] == "here"
    (component,) = kustomization["components"]
    assert component.endswith("k8s/components/canary")
    assert kustomization["configMapGenerator"] == [
        {"name": "release-canary", "literals": ["vision=eyes-v1.0.0", "language=words-v1.1.0"]}
    ]


def test_the_stable_release_is_replaced_in_its_config_map(overlay: Path) -> None:
    plan("demo-v1.1.0", "--overlay", overlay, "--stable")
    kustomization = asked(overlay)
    assert kustomization["components"] == []
    literals = ["vision=demo-v1.1.0", "language=demo-v1.1.0", "gateway=demo-v1.1.0"]
    assert kustomization["configMapGenerator"] == [{"name": "release", "behavior": "merge", "literals": literals}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo"], "is not a tag"),
        (["demo-v1.0.0", "--overlay", "nowhere"], "There is no kustomization in nowhere"),
    ],
)
def test_a_wrong_argument_is_explained(overlay: Path, arguments: list[str], message: str) -> None:
    assert message in str(plan(*arguments).exception)


def test_a_missing_kubectl_is_explained(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "kubectl is not in PATH" in str(plan("demo-v1.1.0", "--overlay", overlay).exception)


def test_an_error_of_kubectl_is_repeated(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECTL_FAILS", "no such file")
    expected = "kubectl cannot build the overlay: no such file"
    assert str(plan("demo-v1.1.0", "--overlay", overlay).exception) == expected


def test_an_overlay_elsewhere_has_no_canary(overlay: Path) -> None:
    (overlay.parents[1] / "components" / "canary").rmdir()
    assert "name an overlay in the tree of k8s/" in str(plan("demo-v1.1.0", "--overlay", overlay).exception)
