"""Settings the gateway combines from several fields."""

from pathlib import Path
from typing import Any

import pytest

from chassis.settings import load_settings
from gateway.settings import GatewaySettings

REQUIRED = ["--models", "models", "--release", "demo-v1.0.0"]


def settings(**fields: Any) -> GatewaySettings:
    return GatewaySettings(models=Path("models"), release="demo-v1.0.0", **fields)


@pytest.mark.parametrize(("asked_s", "given_s"), [(None, 30), (5, 5), (1000, 60)])
def test_a_request_gets_its_own_time_up_to_the_longest(asked_s: float | None, given_s: float) -> None:
    assert settings(default_deadline_s=30, max_deadline_s=60).timeout_s(asked_s) == given_s


def test_a_file_for_tls_to_the_stages_switches_it_on() -> None:
    """Half a configuration must not mean plain text."""
    assert settings().channel_tls is None
    assert settings(stage_ca=Path("ca.pem")).channel_tls is not None
    assert settings(stage_tls=True).channel_tls is not None


def test_several_endpoints_are_separated_by_commas() -> None:
    loaded = load_settings(GatewaySettings, [*REQUIRED, "--vision", "a:1,dns:///b:2", "--language", "c:3"])
    assert (loaded.vision, loaded.language) == (("a:1", "dns:///b:2"), ("c:3",))


def test_the_shared_cache_is_off_by_default_and_its_password_is_never_shown() -> None:
    assert settings().shared_cache_url is None
    loaded = load_settings(GatewaySettings, [*REQUIRED, "--shared-cache-url", "redis://:secret@host:6379/0"])
    assert loaded.shared_cache_url is not None
    assert "secret" not in repr(loaded)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--shared-cache-url", "http://:secret@host"),
        ("--shared-cache-url", "redis://:secret/word@host"),  # a slash ends the host, so this is a port
        ("--rollout-redis", "redis://host:port"),
        ("--max-stop-strings", "17"),
        ("--max-request-bytes", "1000"),
        ("--vision", ","),
        ("--vision", "a:1,b"),
        ("--language", "http://a:1"),
        ("--language", "dns:///language..svc:50052"),
        ("--max-deadline-s", "0"),
        ("--max-deadline-s", "inf"),  # gRPC would take it for long past
        ("--default-deadline-s", "inf"),
        ("--refresh-s", "no"),
    ],
)
def test_a_bad_value_stops_the_process_and_is_named(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        load_settings(GatewaySettings, [*REQUIRED, flag, value])
    assert raised.value.code == 2
    complaint = capsys.readouterr().err
    assert flag in complaint
    assert "secret" not in complaint
