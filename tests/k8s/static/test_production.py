"""Processes run with the settings of the overlay production."""

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

import tandem
from chassis.api_keys import key_sha256, new_key
from tandem.errors import TandemError
from tandem.v1 import model_pb2, vision_pb2_grpc
from tests.k8s.static.manifests import K8S, REPOSITORY, build, objects

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(120)]

RELEASE = "tandem-demo-v1.1.0"
IMAGE = REPOSITORY / "demo" / "images" / "bag-and-bottle.png"
MODULES = {"vision": "vision_service", "language": "language_service", "gateway": "gateway", "http": "http_gateway"}
# What needs other pods: Redis, the collector.
_ELSEWHERE = ("TRACE_ENDPOINT", "SHARED_CACHE_URL", "SHARED_CACHE_SECRET_FILE", "ROLLOUT_REDIS")


def settings_of(name: str, secrets: Path) -> dict[str, str]:
    """Return the variables of a service, for this machine."""
    found = objects(build(K8S / "overlays" / "production"))
    maps = {one["metadata"]["name"].rpartition("-")[0]: one["data"] for one in found if one["kind"] == "ConfigMap"}
    variables = {key: value for key, value in maps[f"{name}-settings"].items() if not key.endswith(_ELSEWHERE)}
    here = {
        key: "127.0.0.1:0" if key.endswith("LISTEN") else value.replace("/etc/tandem", str(secrets / name))
        for key, value in variables.items()
    } | {f"TANDEM_{name.upper()}_METRICS_PORT": "-1"}
    if name == "http":
        return here
    return here | {
        f"TANDEM_{name.upper()}_MODELS": str(REPOSITORY / "models"),
        f"TANDEM_{name.upper()}_{'RELEASE' if name == 'gateway' else 'TAGS'}": RELEASE,
    }


@contextmanager
def running(name: str, variables: dict[str, str], log: Path) -> Iterator[dict[str, Any]]:
    """Yield the ready line of a service."""
    command = [sys.executable, "-m", MODULES[name]]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **variables}, stderr=file)
    try:
        while '"ready"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield next(event for line in log.read_text().splitlines() if (event := json.loads(line))["event"] == "ready")
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Return a folder with the Secrets of each service."""
    authority = trustme.CA()
    for name, folder, names in (
        ("gateway", "tls", ["localhost"]),
        ("gateway", "stage-tls", ["gateway"]),
        ("vision", "tls", ["localhost"]),
        ("language", "tls", ["localhost"]),
        ("http", "tls", ["localhost"]),
        ("http", "gateway-ca", ["unused"]),
    ):
        target = tmp_path / name / folder
        target.mkdir(parents=True)
        issued = authority.issue_cert(*names)
        issued.cert_chain_pems[0].write_to_path(target / "tls.crt")
        issued.private_key_pem.write_to_path(target / "tls.key")
        authority.cert_pem.write_to_path(target / "ca.crt")
    (tmp_path / "gateway" / "keys").mkdir()
    return tmp_path


def unload_as_http_door(port: int, secrets: Path) -> grpc.StatusCode:
    """Try to unload a model with the HTTP door's certificate."""
    ca, key, cert = ((secrets / "http" / "tls" / name).read_bytes() for name in ("ca.crt", "tls.key", "tls.crt"))
    with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca, key, cert)) as channel:
        stage: Any = vision_pb2_grpc.VisionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stage.UnloadModel(model_pb2.UnloadModelRequest(tag=RELEASE), timeout=10)
    call: Any = refused.value
    return call.code()  # type: ignore[no-any-return]


def test_a_client_with_a_key_is_answered_over_tls_and_probes_are_in_the_clear(secrets: Path) -> None:
    key = new_key()
    keys = f'[[tenants]]\nname = "a"\nkey_sha256 = ["{key_sha256(key)}"]\n'
    (secrets / "gateway" / "keys" / "keys.toml").write_text(keys)
    with ExitStack() as stack:
        ready = {}
        for name in ("vision", "language"):
            ready[name] = stack.enter_context(running(name, settings_of(name, secrets), secrets / f"{name}.log"))
        targets = {f"TANDEM_GATEWAY_{name.upper()}": f"dns:///localhost:{ready[name]['port']}" for name in ready}
        variables = settings_of("gateway", secrets) | targets
        ready["gateway"] = stack.enter_context(running("gateway", variables, secrets / "gateway.log"))

        address = f"localhost:{ready['gateway']['port']}"
        ca = secrets / "gateway" / "tls" / "ca.crt"
        with tandem.Client(address, ca=ca, api_key=key) as client:
            assert client.ask("Is the bag made of leather?", images=[IMAGE], max_tokens=8).text
        with tandem.Client(address, ca=ca) as stranger, pytest.raises(TandemError):
            stranger.ask("Hello?")

        # The HTTP door takes HTTPS alone, and passes keys on.
        variables = settings_of("http", secrets) | {"TANDEM_HTTP_GATEWAY": f"dns:///{address}"}
        ready["http"] = stack.enter_context(running("http", variables, secrets / "http.log"))
        url = f"https://localhost:{ready['http']['port']}"
        with httpx2.Client(verify=ssl.create_default_context(cafile=ca), trust_env=False, timeout=30) as door:
            assert door.get(f"{url}/readyz").status_code == 200
            asking = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
            statuses = [
                door.post(f"{url}/v1/chat/completions", json=asking, headers=headers).status_code
                for headers in ({"authorization": f"Bearer {key}"}, {})
            ]
        assert statuses == [200, 401]

        # A stage wants a certificate, and the gateway's name in it.
        assert unload_as_http_door(ready["vision"]["port"], secrets) is grpc.StatusCode.PERMISSION_DENIED
        without = grpc.ssl_channel_credentials(ca.read_bytes())
        with (
            grpc.secure_channel(f"localhost:{ready['vision']['port']}", without) as channel,
            pytest.raises(grpc.FutureTimeoutError),
        ):
            grpc.channel_ready_future(channel).result(timeout=2)

        for name, service in (("vision", "tandem.v1.VisionService"), ("gateway", "tandem.v1.Gateway/stable")):
            with grpc.insecure_channel(f"127.0.0.1:{ready[name]['probe_port']}") as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
