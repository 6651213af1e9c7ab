"""Strangers and other certificates at the ports of both stages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from chassis.settings import load_settings
from language_service.service import LanguageSettings
from tandem.v1 import language_pb2, language_pb2_grpc, model_pb2, vision_pb2, vision_pb2_grpc
from tests import processes
from tests.language_service.process import Running as RunningLanguage
from tests.processes import StageProcess
from tests.vision_service.process import Running as RunningVision
from vision_service.service import VisionSettings

pytestmark = pytest.mark.timeout(300)

TAG = "tiny-v1.0.0"
STAGES: dict[str, tuple[type[StageProcess], Any, Any, str]] = {
    "vision": (RunningVision, vision_pb2, vision_pb2_grpc, "VisionService"),
    "language": (RunningLanguage, language_pb2, language_pb2_grpc, "LanguageService"),
}
DENIED = grpc.StatusCode.PERMISSION_DENIED


class Certificates:
    """An authority, and the certificates that it signs."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        server = self._authority.issue_cert("localhost", "127.0.0.1")
        server.cert_chain_pems[0].write_to_path(self.cert)
        server.private_key_pem.write_to_path(self.key)

    def client(self, name: str, authority: trustme.CA | None = None) -> grpc.ChannelCredentials:
        """Return the credentials of a client with a name."""
        issued = (authority or self._authority).issue_cert(name)
        chain = issued.cert_chain_pems[0].bytes()
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), issued.private_key_pem.bytes(), chain)


class Stage:
    """A running stage behind mutual TLS."""

    def __init__(self, name: str, port: int, certificates: Certificates) -> None:
        _kind, self._messages, self._stubs, self.service = STAGES[name]
        self.address = f"localhost:{port}"
        self.certificates = certificates

    @property
    def methods(self) -> list[str]:
        return [method.name for method in self._messages.DESCRIPTOR.services_by_name[self.service].methods]

    def status(self, method: str, channel: grpc.Channel) -> grpc.StatusCode:
        """Call a method for the model, and return its status."""
        described = self._messages.DESCRIPTOR.services_by_name[self.service].methods_by_name[method]
        module = model_pb2 if hasattr(model_pb2, described.input_type.name) else self._messages
        request: Any = getattr(module, described.input_type.name)()
        if "tag" in described.input_type.fields_by_name:
            request.tag = TAG
        call = getattr(getattr(self._stubs, f"{self.service}Stub")(channel), method)
        try:
            result = call(iter([request]) if described.client_streaming else request, timeout=20)
            if described.server_streaming:
                list(result)
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code()  # type: ignore[no-any-return]
        return grpc.StatusCode.OK

    def statuses(self, credentials: grpc.ChannelCredentials) -> dict[str, grpc.StatusCode]:
        with grpc.secure_channel(self.address, credentials) as channel:
            return {method: self.status(method, channel) for method in self.methods}


@pytest.fixture(scope="module", params=list(STAGES))
def stage(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Yield a stage with the client 'gateway' and loader 'admin'."""
    certificates = Certificates(tmp_path_factory.mktemp("tls"))
    flags = {
        "--tags": TAG,
        "--tls-cert": certificates.cert,
        "--tls-key": certificates.key,
        "--tls-client-ca": certificates.ca,
        "--tls-clients": "gateway",
        "--tls-loaders": "admin",
    }
    kind = STAGES[request.param][0]
    with processes.running(kind, store, *(str(part) for flag in flags.items() for part in flag)) as running:
        yield Stage(request.param, running.port, certificates)


def test_another_certificate_of_the_authority_can_call_nothing(stage: Stage) -> None:
    """Every method is tried, future ones included."""
    names = ["vision", "gateway.example", "*.example", "localhost"]
    for name in names:
        assert stage.statuses(stage.certificates.client(name)) == dict.fromkeys(stage.methods, DENIED)


def test_the_gateway_may_ask_but_neither_load_nor_unload(stage: Stage) -> None:
    statuses = stage.statuses(stage.certificates.client("gateway"))
    denied = {method for method, status in statuses.items() if status is DENIED}
    assert denied == {"LoadModel", "UnloadModel"}
    assert statuses["ListModels"] is grpc.StatusCode.OK


def test_a_loader_may_load(stage: Stage) -> None:
    with grpc.secure_channel(stage.address, stage.certificates.client("admin")) as channel:
        assert stage.status("LoadModel", channel) is grpc.StatusCode.OK


@pytest.mark.parametrize("who", ["in the clear", "without a certificate", "of another authority"])
def test_strangers_cannot_connect(who: str, stage: Stage) -> None:
    ca = stage.certificates.ca.read_bytes()
    channels = {
        "in the clear": lambda: grpc.insecure_channel(stage.address),
        "without a certificate": lambda: grpc.secure_channel(stage.address, grpc.ssl_channel_credentials(ca)),
        "of another authority": lambda: grpc.secure_channel(
            stage.address, stage.certificates.client("gateway", trustme.CA())
        ),
    }
    with channels[who]() as channel:
        assert stage.status("UnloadModel", channel) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("kind", [VisionSettings, LanguageSettings])
def test_a_stage_does_not_start_in_the_clear_for_everybody(
    kind: type[VisionSettings | LanguageSettings], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load_settings(kind, ["--models", str(store), "--listen", "0.0.0.0:0"])
    assert ended.value.code == 2
    assert "--allow-anonymous" in capsys.readouterr().err
