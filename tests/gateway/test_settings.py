"""Settings of the gateway: derived values and errors."""

from pathlib import Path
from typing import Any

import pytest

from chassis.settings import load_settings
from gateway.settings import GatewaySettings

REQUIRED = ["--models", "models", "--release", "demo-v1.0.0"]


def settings(**fields: Any) -> GatewaySettings:
    return GatewaySettings(models=Path("models"), release="demo-v1.0.0", **fields)


@pytest.mark.parametrize(("client_timeout_s", "timeout_s"), [(None, 30), (5, 5), (1000, 60)])
def test_a_clients_deadline_is_capped_and_has_a_default(client_timeout_s: float | None, timeout_s: float) -> None:
    assert settings(default_deadline_s=30, max_deadline_s=60).timeout_s(client_timeout_s) == timeout_s


def test_any_tls_file_enables_tls_to_the_stages() -> None:
    """A partial configuration must not mean plain text."""
    assert settings().channel_tls is None
    assert settings(stage_ca=Path("ca.pem")).channel_tls is not None
    assert settings(stage_tls=True).channel_tls is not None


def test_commas_separate_endpoints() -> None:
    loaded = load_settings(GatewaySettings, [*REQUIRED, "--vision", "a:1,dns:///b:2", "--language", "c:3"])
    assert (loaded.vision, loaded.language) == (("a:1", "dns:///b:2"), ("c:3",))


def test_the_shared_cache_is_off_by_default_and_its_password_is_never_printed(tmp_path: Path) -> None:
    assert settings().shared_cache_url is None
    file = tmp_path / "url"
    file.write_text("redis://:hunter2@host:6379/0\n")
    loaded = load_settings(GatewaySettings, [*REQUIRED, "--shared-cache-url-file", str(file)])
    assert loaded.shared_cache_url is not None
    assert loaded.shared_cache_url.get_secret_value() == "redis://:hunter2@host:6379/0"
    assert "hunter2" not in repr(loaded)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--shared-cache-url", "http://:secret@host"),
        (
            "--shared-cache-url",
            "redis://:secret/word@host",
        ),  # the slash turns the password into a port
        ("--rollout-redis", "redis://host:port"),
        ("--rollout-redis", "redis://:secret@host:6379/0"),  # every user can read the flags of a process
        ("--max-stop-strings", "17"),
        ("--max-request-bytes", "1000"),
        ("--vision", ","),
        ("--vision", "a:1,b"),
        ("--language", "http://a:1"),
        ("--language", "dns:///language..svc:50052"),
        ("--max-deadline-s", "0"),
        ("--max-deadline-s", "inf"),  # gRPC would treat it as expired
        ("--default-deadline-s", "inf"),
        ("--refresh-s", "no"),
    ],
)
def test_an_invalid_value_stops_the_process_and_the_error_names_the_flag(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        load_settings(GatewaySettings, [*REQUIRED, flag, value])
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert flag in printed
    assert "secret" not in printed


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", "127.9.9.9:1"])
def test_loopback_needs_neither_tls_nor_keys(listen: str) -> None:
    assert settings(listen=listen).role_without_keys == "operator"


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "10.0.0.1:50050", "gateway.example:1"])
def test_other_addresses_need_tls_and_keys_or_an_explicit_flag(listen: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match="--allow-plaintext"):
        settings(listen=listen, keys=path)
    with pytest.raises(ValueError, match="--allow-anonymous"):
        settings(listen=listen, tls_cert=path, tls_key=path)
    settings(listen=listen, tls_cert=path, tls_key=path, keys=path)
    settings(listen=listen, tls_cert=path, tls_key=path, tls_client_ca=path)
    assert settings(listen=listen, allow_plaintext=True, allow_anonymous=True).role_without_keys == "client"
