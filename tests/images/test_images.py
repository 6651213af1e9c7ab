"""Each image runs alone: without privileges, without network, on a read-only root."""

import json
import subprocess
from typing import Any

import pytest

import tandem

pytestmark = [pytest.mark.images, pytest.mark.timeout(180)]

MODULES = {"gateway": "gateway", "vision": "vision_service", "language": "language_service"}
ISOLATED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--network", "none", "--memory", "768m", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
)


def podman(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = ["podman", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=timeout_s)


def image(service: str) -> str:
    return f"localhost/tandem-{service}:{tandem.__version__}"


def run(service: str, *command: str) -> str:
    """Run a command in a container and return its output."""
    done = podman("run", "--rm", *ISOLATED, "--entrypoint", command[0], image(service), *command[1:])
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("service", MODULES)
def test_the_image_has_labels_and_no_privileges(service: str) -> None:
    described = podman("image", "inspect", image(service))
    assert described.returncode == 0, f"build it with `make images`: {described.stderr}"
    (facts,) = json.loads(described.stdout)
    labels: dict[str, str] = facts["Labels"]
    assert labels["org.opencontainers.image.title"] == f"tandem-{service}"
    assert labels["org.opencontainers.image.version"] == tandem.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert facts["Config"]["User"] == "65532:65532"
    assert facts["Config"]["Entrypoint"] == ["python", "-m", MODULES[service]]
    print(f"\n{image(service)}: {facts['Size'] / 1e6:.0f} MB")


@pytest.mark.parametrize("service", MODULES)
def test_the_image_lists_its_packages(service: str) -> None:
    document: dict[str, Any] = json.loads(run(service, "cat", "/usr/share/tandem/sbom.cdx.json"))
    assert document["bomFormat"] == "CycloneDX"
    names = {one["name"] for one in document["components"]}
    assert {"grpcio", "pydantic", "tandem-serving", "libc6"} <= names
    assert ("torch" in names) == (service != "gateway")


@pytest.mark.parametrize("service", MODULES)
def test_the_image_has_no_compiler(service: str) -> None:
    code = "import shutil; assert not any(map(shutil.which, ('gcc', 'g++', 'cc')))"
    run(service, "python", "-c", code)


def test_the_kernels_are_compiled_for_this_processor() -> None:
    code = "from importlib.util import find_spec; print(find_spec('language_service.kernels._native').origin)"
    assert run("language", "python", "-c", code).strip().endswith(".so")


@pytest.mark.parametrize("service", MODULES)
def test_sigterm_ends_the_container_with_code_0(service: str) -> None:
    name = f"tandem-test-{service}"
    release = ["--release", "tandem-demo-v1.1.0"] if service == "gateway" else ["--tags", "tandem-demo-v1.1.0"]
    flags = ["--models", "/store/checkpoints", "--log-format", "json", *release]
    with_models = f"type=image,source={image('models-copy')},destination=/store"
    podman("rm", "--force", name)
    started = podman("run", "--detach", "--name", name, "--mount", with_models, *ISOLATED, image(service), *flags)
    assert started.returncode == 0, started.stderr
    try:
        wait_until_ready(name)
        assert podman("stop", "--time", "30", name).returncode == 0
        code = podman("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip()
        assert code == "0", podman("logs", name).stderr
    finally:
        podman("rm", "--force", name)


def wait_until_ready(name: str) -> None:
    log = subprocess.Popen(["podman", "logs", "--follow", name], stderr=subprocess.PIPE, encoding="utf-8")
    assert log.stderr is not None
    lines = []
    for line in log.stderr:
        lines.append(line)
        if '"event": "ready"' in line:
            log.kill()
            log.wait()
            log.stderr.close()
            return
    raise AssertionError("".join(lines))
