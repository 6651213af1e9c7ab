"""A stage serves no strangers unless it is told to."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chassis.errors import PermissionDenied
from hosting import Callers, StageSettings


def settings(**fields: Any) -> StageSettings:
    return StageSettings(**{"models": Path("models"), **fields})


def peer(*names: str) -> Any:
    return SimpleNamespace(peer_identities=lambda: [name.encode() for name in names])


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:50051"])
def test_loopback_needs_no_certificates(listen: str) -> None:
    assert settings(listen=listen).listen == listen


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:50051", "vision.example:1"])
def test_other_addresses_need_mutual_tls_or_an_explicit_flag(listen: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match="--allow-anonymous"):
        settings(listen=listen)
    with pytest.raises(ValueError, match="--tls-client-ca"):
        settings(listen=listen, tls_cert=path, tls_key=path)
    settings(listen=listen, tls_cert=path, tls_key=path, tls_client_ca=path)
    settings(listen=listen, allow_anonymous=True)


@pytest.mark.parametrize("field", ["tls_clients", "tls_loaders"])
def test_names_without_client_certificates_are_refused(field: str) -> None:
    """They would look like a protection and be none."""
    with pytest.raises(ValueError, match="--tls-client-ca"):
        settings(**{field: ("gateway",)})


def allowed(callers: Callers, context: Any) -> tuple[bool, bool]:
    """Return whether a peer may call, and load models."""

    def passes(method: str) -> bool:
        try:
            callers.name_of(method, context)
        except PermissionDenied:
            return False
        return True

    return passes("Encode"), passes("LoadModel")


@pytest.mark.parametrize(
    ("clients", "loaders", "name", "expected"),
    [
        ((), (), "any", (True, True)),
        (("gateway",), (), "gateway", (True, True)),
        (("gateway",), (), "other", (False, False)),
        (("gateway",), ("admin",), "gateway", (True, False)),
        (("gateway",), ("admin",), "admin", (True, True)),
        ((), ("admin",), "gateway", (True, False)),
        ((), ("admin",), "admin", (True, True)),
        (("gateway",), (), "Gateway", (False, False)),
        (("gateway",), (), "*", (False, False)),
    ],
)
def test_names_decide_who_may_call_and_who_may_load(
    clients: tuple[str, ...], loaders: tuple[str, ...], name: str, expected: tuple[bool, bool]
) -> None:
    assert allowed(Callers(clients=clients, loaders=loaders), peer(name)) == expected


def test_any_name_of_a_certificate_suffices_and_none_does_not() -> None:
    callers = Callers(clients=["gateway"])
    assert allowed(callers, peer("10.0.0.1", "gateway")) == (True, True)
    assert callers.name_of("Encode", peer("10.0.0.1", "gateway")) == "10.0.0.1"
    assert allowed(callers, peer()) == (False, False)
    assert allowed(callers, SimpleNamespace(peer_identities=lambda: None)) == (False, False)
