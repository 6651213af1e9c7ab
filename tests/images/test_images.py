"""Each image runs alone: without privileges, without network, on a read-only root."""

import json
from typing import Any

import pytest

import tandem
from tests.images.containers import MODULES, Container, image, podman, run

pytestmark = [pytest.mark.images, pytest.mark.timeout(180)]


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
    document: dict[str, Any] = json.loads(run(service, ["cat", "/usr/share/tandem/sbom.cdx.json"]))
    image_itself = document["metadata"]["component"]
    assert (image_itself["name"], image_itself["version"]) == (f"tandem-{service}", tandem.__version__)
    urls = {one["name"]: one.get("purl", "") for one in document["components"]}
    assert {"grpcio", "pydantic", "tandem-serving", "libc6"} <= urls.keys()
    assert urls["libc6"].endswith("distro=debian-12"), "scanners need it"
    assert ("torch" in urls) == (service in ("vision", "language"))
    assert "cyclonedx-bom" not in urls


@pytest.mark.parametrize("service", MODULES)
def test_what_wrote_the_list_is_not_in_the_image(service: str) -> None:
    run(service, ["python", "-c", "import os; assert not os.path.exists('/opt/sbom') and not os.path.exists('/sbom')"])


@pytest.mark.parametrize("service", MODULES)
def test_the_image_has_no_compiler(service: str) -> None:
    code = "import shutil; assert not any(map(shutil.which, ('gcc', 'g++', 'cc')))"
    run(service, ["python", "-c", code])


@pytest.mark.parametrize("service", ["vision", "language"])
def test_the_kernels_are_compiled_for_this_processor(service: str) -> None:
    code = f"from importlib.util import find_spec; print(find_spec('{MODULES[service]}.kernels._native').origin)"
    assert run(service, ["python", "-c", code]).strip().endswith(".so")


@pytest.mark.parametrize("service", MODULES)
def test_sigterm_ends_an_idle_container_with_code_0(service: str) -> None:
    with Container(service, network="none", memory="768m") as container:
        container.wait_until_ready()
        assert container.stop(grace_s=30) == 0, container.log()


@pytest.mark.parametrize("service", MODULES)
def test_only_tmp_can_be_written(service: str) -> None:
    code = (
        "import errno, pathlib, sys\n"
        "pathlib.Path('/tmp/file').write_text('x')\n"
        "for folder in ('/', '/opt/tandem', '/usr/share/tandem'):\n"
        "    try: pathlib.Path(folder, 'file').write_text('x')\n"
        "    except OSError as error: assert error.errno == errno.EROFS, error\n"
        "    else: sys.exit(folder + ' can be written')\n"
    )
    run(service, ["python", "-c", code])
