"""`tandem deploy`: show how a release changes a Kubernetes overlay."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from checkpoint.tags import parse_tag, split_release
from tandem.errors import FailedPrecondition, NotFound

app = typer.Typer(no_args_is_help=True, help="Show how a release changes a Kubernetes overlay.")

_NAME = re.compile(r"^metadata:\n(?:  .*\n)*?  name: (\S+)$", re.MULTILINE)
_KIND = re.compile(r"^kind: (\S+)$", re.MULTILINE)
_NAMESPACE = re.compile(r"^  namespace: (\S+)$", re.MULTILINE)


@app.callback()
def deploy() -> None:
    """Show how a release changes a Kubernetes overlay."""


@app.command()
def plan(
    release: Annotated[str, typer.Argument(metavar="TAG", help="A tag, or 'vision tag,language tag'.")],
    overlay: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The overlay that is applied now, in the tree of k8s/.")
    ] = Path("k8s/overlays/production"),
    stable: Annotated[
        bool, typer.Option("--stable", help="Replace the stable release. By default, bring a canary beside it.")
    ] = False,
) -> None:
    """Print the objects that differ when TAG is brought.

    By default these are the pods of a canary beside the stable release. Objects go to stdout, a summary to stderr:

    tandem deploy plan demo-v1.1.0 | kubectl apply -f -
    """
    for tag in split_release(release):
        parse_tag(tag)
    before = _objects(_build(overlay))
    after = _objects(_build_changed(overlay, _change(overlay, release, stable=stable), before))
    changed = {name: text for name, text in after.items() if before.get(name) != text}
    for name in changed:
        typer.echo(f"{'change' if name in before else 'add':6} {name}", err=True)
    for name in before.keys() - after.keys():
        typer.echo(f"unused {name}", err=True)
    typer.echo("---\n".join(changed.values()), nl=False)


def _change(overlay: Path, release: str, *, stable: bool) -> dict[str, Any]:
    """Return the part of a kustomization that brings a release."""
    vision_tag, language_tag = split_release(release)
    halves = [f"vision={vision_tag}", f"language={language_tag}"]
    if stable:
        literals = [*halves, f"gateway={release}"]
        return {"configMapGenerator": [{"name": "release", "behavior": "merge", "literals": literals}]}
    component = overlay.resolve().parents[1] / "components" / "canary"
    if not component.is_dir():
        raise NotFound(f"There is no {component}: name an overlay in the tree of k8s/ with --overlay.")
    return {
        "components": [component],
        "configMapGenerator": [{"name": "release-canary", "literals": halves}],
    }


def _build_changed(overlay: Path, change: dict[str, Any], before: dict[str, str]) -> str:
    """Build an overlay with a change."""
    namespace = next((found[1] for text in before.values() if (found := _NAMESPACE.search(text))), "default")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        # Kustomize takes relative folders alone.
        components = [os.path.relpath(path, folder) for path in change.get("components", [])]
        resources = [os.path.relpath(overlay.resolve(), folder)]
        kustomization = {**change, "components": components, "resources": resources, "namespace": namespace}
        (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
        return _build(folder)


def _build(folder: Path) -> str:
    """Return the YAML of a kustomization.

    Raises:
        NotFound: the folder or kubectl is missing.
        FailedPrecondition: kubectl cannot build it. The message is kubectl's.
    """
    if not (folder / "kustomization.yaml").exists():
        raise NotFound(f"There is no kustomization in {folder}: name the folder of an overlay with --overlay.")
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise NotFound("kubectl is not in PATH: install kubectl 1.27 or newer, which builds the manifests.")
    return _run([kubectl, "kustomize", str(folder)])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise FailedPrecondition(f"kubectl cannot build the overlay: {done.stderr.strip().removeprefix('error: ')}")
    return done.stdout


def _objects(text: str) -> dict[str, str]:
    """Split YAML documents of kustomize, by 'kind/name'."""
    found = {}
    for document in text.split("\n---\n"):
        kind, name = _KIND.search(document), _NAME.search(document)
        if kind and name:
            found[f"{kind[1]}/{name[1]}"] = f"{document.rstrip()}\n"
    return found
