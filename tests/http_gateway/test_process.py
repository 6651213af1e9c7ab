"""The door as a process: TLS, signals, `tandem up --http`."""

import json
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from pydantic import ValidationError

from chassis.errors import FailedPrecondition
from http_gateway.door import HttpSettings
from tandem.stack import Stack
from tests.http_gateway.conftest import OpenDoor
from tests.http_gateway.doors import CHAT, question, running_door
from tests.http_gateway.scripted import Script


def start(*flags: str, program: Sequence[str] = ("-m", "http_gateway")) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start a door, and return it with its line "ready"."""
    command = [sys.executable, *program, "--listen", "127.0.0.1:0", "--log-format", "json", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    return process, next(entry for line in process.stderr if (entry := json.loads(line))["event"] == "ready")


# A door one of whose parts never stops.
STUCK = """
import asyncio, contextlib, sys
from http_gateway import service
from http_gateway.__main__ import main

async def never_stop(*_, **__): await asyncio.Event().wait()

@contextlib.asynccontextmanager
async def open_forever(**_):
    yield None
    await never_stop()

service._STOP_HTTP_S = service._CLOSE_S = 0.5
if sys.argv.pop() == "door":
    service.open_image_reader = open_forever
else:
    service._Server.shutdown = never_stop
main()
"""


@pytest.mark.parametrize("part", ["door", "HTTP server"])
def test_a_part_that_does_not_stop_is_left_behind(part: str) -> None:
    """Whatever supervises the process waits for its end."""
    process, _ = start("--gateway", "127.0.0.1:1", "--drain-s", "0", part, program=["-c", STUCK])
    try:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)  # less than the time after which a thread ends the process
    finally:
        process.kill()
    assert process.returncode == 0
    assert [entry["part"] for line in log.splitlines() if "part" in (entry := json.loads(line))] == [part]


def test_a_process_answers_and_stops_at_sigterm(stack: Stack) -> None:
    process, ready = start("--gateway", stack.address, "--drain-s", "5")
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{ready['port']}{CHAT}",
            json.dumps(question("Hi.", max_tokens=3)).encode(),
            {"content-type": "application/json", "x-request-id": "mine"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["completion_tokens"] <= 3
        with urllib.request.urlopen(f"http://127.0.0.1:{ready['metrics_port']}/metrics", timeout=10) as response:
            assert b'tandem_http_requests_total{path="/v1/chat/completions",status="200"} 1.0' in response.read()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=20)
    finally:
        process.kill()
    entries = [json.loads(line) for line in log.splitlines()]
    assert process.returncode == 0
    (line,) = [entry for entry in entries if entry["event"] == "http"]
    assert (line["request_id"], line["path"], line["status"]) == ("mine", CHAT, 200)
    assert [entry["event"] for entry in entries[-2:]] == ["stopping", "stopped"]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, trustme.CA]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    return tmp_path / "cert.pem", tmp_path / "key.pem", authority


async def test_tls_serves_clients_that_trust_it(
    open_door: OpenDoor, certificate: tuple[Path, Path, trustme.CA]
) -> None:
    cert, key, authority = certificate
    door = await open_door(Script().handlers, tls_cert=cert, tls_key=key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
        response = await client.post(f"https://127.0.0.1:{door.port}{CHAT}", json=question("Hi."))
        assert response.json()["choices"][0]["message"]["content"] == "Hello"
    with pytest.raises(httpx2.ConnectError):
        await door.client.get("/healthz")  # it does not trust the authority


async def test_mutual_tls_refuses_clients_without_a_certificate(
    open_door: OpenDoor, certificate: tuple[Path, Path, trustme.CA], tmp_path: Path
) -> None:
    cert, key, authority = certificate
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    door = await open_door(Script().handlers, tls_cert=cert, tls_key=key, tls_client_ca=tmp_path / "ca.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
        with pytest.raises((httpx2.NetworkError, httpx2.ProtocolError)):
            await client.get(f"https://127.0.0.1:{door.port}/healthz")
    authority.issue_cert("client").configure_cert(context)
    async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
        assert (await client.get(f"https://127.0.0.1:{door.port}/healthz")).status_code == 200


async def test_a_taken_port_is_one_sentence(open_door: OpenDoor) -> None:
    door = await open_door({})
    with pytest.raises(
        FailedPrecondition, match=f"Cannot listen on 127.0.0.1:{door.port} for HTTP: the port is in use"
    ):
        async with running_door("127.0.0.1:1", listen=f"127.0.0.1:{door.port}"):
            pass


def test_other_addresses_need_tls_or_permission() -> None:
    anywhere: dict[str, Any] = {"listen": "0.0.0.0:8080"}
    with pytest.raises(ValidationError, match="not loopback"):
        HttpSettings(**anywhere)
    anywhere["allow_plaintext"] = True
    assert not HttpSettings(**anywhere).is_local
    with pytest.raises(ValidationError, match="host:port"):
        HttpSettings(**{**anywhere, "gateway": "http://gateway"})


def test_keys_are_passed_to_another_machine_only_with_tls_or_permission() -> None:
    far: dict[str, Any] = {"gateway": "dns:///gateway:50050"}
    with pytest.raises(ValidationError, match="--gateway is not loopback, and gets the API keys"):
        HttpSettings(**far)
    for more in ({"gateway_tls": True}, {"allow_plaintext": True}, {"gateway": "localhost:1"}):
        HttpSettings(**{**far, **more})


async def test_metrics_are_public_only_if_asked_for(open_door: OpenDoor) -> None:
    anywhere: dict[str, Any] = {"listen": "0.0.0.0:0", "allow_plaintext": True}
    assert (await (await open_door({}, **anywhere)).client.get("/metrics")).status_code == 404
    assert (await (await open_door({}, **anywhere, public_metrics=True)).client.get("/metrics")).status_code == 200


async def test_health_readiness_version_and_document(stack: Stack) -> None:
    async with running_door(stack.address) as door:
        for path in ("/healthz", "/readyz", "/version", "/metrics", "/openapi.json"):
            assert (await door.client.get(path)).status_code == 200, path
        document = (await door.client.get("/openapi.json")).json()
        assert document["openapi"] == "3.1.0"
        assert CHAT in document["paths"]
