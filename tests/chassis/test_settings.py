"""Settings from flags and environment variables."""

from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from chassis.network import split_address
from chassis.settings import CommaSeparated, ServiceSettings, load_settings


class ExampleSettings(ServiceSettings):
    """Serves examples."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_EXAMPLE_")

    listen: str = Field(default="127.0.0.1:50099", description="host:port to serve gRPC on")
    models: Path = Field(default=Path("models"), description="folder of the model store")
    tags: CommaSeparated = Field(default=(), description="tags to load, separated by commas")
    names: CommaSeparated = Field(default=("a", "b"), description="allowed callers, separated by commas")
    plain: bool = Field(default=False, description="without ornaments")
    api_key: SecretStr = Field(default=SecretStr(""), max_length=8, description="key of the callers")
    url: SecretStr | None = Field(default=None, description="address of a store")
    url_file: Path | None = Field(default=None, description="file of that address")


def test_a_flag_overrides_the_environment_which_overrides_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_EXAMPLE_DRAIN_S", "5")
    monkeypatch.setenv("TANDEM_EXAMPLE_METRICS_PORT", "9100")
    settings = load_settings(ExampleSettings, ["--drain-s", "7.5"])
    assert (settings.drain_s, settings.metrics_port, settings.listen) == (7.5, 9100, "127.0.0.1:50099")


def test_lists_are_separated_by_commas_in_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(ExampleSettings, ["--tags", "a-v1.0.0, b-v1.0.0"]).tags == ("a-v1.0.0", "b-v1.0.0")
    monkeypatch.setenv("TANDEM_EXAMPLE_TAGS", "c-v1.0.0,")
    assert load_settings(ExampleSettings, []).tags == ("c-v1.0.0",)


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty path would be the working folder."""
    monkeypatch.setenv("TANDEM_EXAMPLE_TLS_CERT", "")
    assert load_settings(ExampleSettings, []).tls_cert is None


def test_settings_are_frozen() -> None:
    settings = load_settings(ExampleSettings, [])
    with pytest.raises(ValidationError):
        settings.drain_s = 1


def test_help_documents_every_setting_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_settings(ExampleSettings, ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    squeezed = "".join(text.split())
    for name, field in ExampleSettings.model_fields.items():
        assert field.description, name
        assert f"--{name.replace('_', '-')}" in text
        assert f"TANDEM_EXAMPLE_{name.upper()}" in squeezed
        assert "".join(field.description.split()) in squeezed


def test_help_shows_values_as_users_type_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(ExampleSettings, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for shown in (
        "--drain-s NUMBER",
        "--metrics-port INTEGER",
        "--models PATH",
        "--api-key TEXT",
        "--tags TEXT,... tags to load, separated by commas (default: none)",
        "switches TLS on (default: unset)",
        "--log-level {debug,info,warning,error}",
        "--plain, --no-plain without ornaments (default: off)",
        "--names TEXT,... allowed callers, separated by commas (default: a,b)",
    ):
        assert shown in text
    assert not [name for name in ("SecretStr", "tuple", "None", "False", "()") if name in text]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--drain-s", "soon"], "--drain-s (TANDEM_EXAMPLE_DRAIN_S)"),
        (["--drain-s", "nan"], "--drain-s (TANDEM_EXAMPLE_DRAIN_S)"),
        (["--drain-s", "-1"], "--drain-s (TANDEM_EXAMPLE_DRAIN_S)"),
        (["--metrics-port", "70000"], "--metrics-port (TANDEM_EXAMPLE_METRICS_PORT)"),
        (["--log-format", "xml"], "--log-format (TANDEM_EXAMPLE_LOG_FORMAT)"),
        (["--listen", "50051"], "--listen (TANDEM_EXAMPLE_LISTEN)"),
        (["--listen", "localhost:99999"], "--listen (TANDEM_EXAMPLE_LISTEN)"),
        (["--tls-cert", "/nowhere.pem"], "--tls-cert (TANDEM_EXAMPLE_TLS_CERT)"),
        (["--tls-cert", "/"], "--tls-cert (TANDEM_EXAMPLE_TLS_CERT)"),
        (["--tls-key", __file__], "--tls-key (TANDEM_EXAMPLE_TLS_KEY)"),
        (["--tls-cert", __file__], "--tls-key (TANDEM_EXAMPLE_TLS_KEY)"),
        (["--tls-client-ca", __file__], "--tls-client-ca (TANDEM_EXAMPLE_TLS_CLIENT_CA)"),
        (["--api-key", "hunter2-hunter2"], "--api-key (TANDEM_EXAMPLE_API_KEY)"),
        (["--drain"], "--drain"),
        (["--api-kee=hunter2-hunter2"], "--api-kee"),
        (["--api-kee", "hunter2-hunter2"], "--api-kee"),
        (["hunter2-hunter2"], "unrecognized"),
    ],
)
def test_an_invalid_flag_stops_the_process_with_one_line_that_names_it(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        load_settings(ExampleSettings, argv)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.count("\n") == 1
    assert "hunter2" not in out + err  # a value can be a secret


@pytest.mark.parametrize(
    ("flags", "is_refused"),
    [
        (["--api-key", "hunter2"], True),
        (["--api-key=hunter2"], True),
        (["--url", "redis://:hunter2@host:1/0"], True),
        (["--url", "redis://user:hunter2@host:1/0"], True),
        (["--url", "redis://host:1/0"], False),
        (["--url=unix:///run/redis.sock"], False),
    ],
)
def test_a_secret_among_the_flags_is_refused(
    flags: list[str], is_refused: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every user can read the flags of a process."""
    if not is_refused:
        assert load_settings(ExampleSettings, flags).url is not None
        return
    with pytest.raises(SystemExit) as stop:
        load_settings(ExampleSettings, flags)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "so set the variable or --" in said
    assert "TANDEM_EXAMPLE_" in said
    assert "hunter2" not in said


def test_a_secret_is_read_from_a_variable_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TANDEM_EXAMPLE_API_KEY", "hunter2")
    file = tmp_path / "url"
    file.write_text("redis://:hunter2@host:1/0\n")
    settings = load_settings(ExampleSettings, ["--url-file", str(file)])
    assert settings.api_key.get_secret_value() == "hunter2"
    assert settings.url is not None
    assert settings.url.get_secret_value() == "redis://:hunter2@host:1/0"
    with pytest.raises(SystemExit):
        load_settings(ExampleSettings, ["--url-file", str(tmp_path / "missing")])
    assert "--url-file cannot be read" in capsys.readouterr().err


def test_networks_of_trusted_callers_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_settings(ExampleSettings, ["--trace-peers", "10.0.0.0/8,::1"]).trace_peers == ("10.0.0.0/8", "::1")
    with pytest.raises(SystemExit):
        load_settings(ExampleSettings, ["--trace-peers", "10.0.0.0/99"])
    assert "--trace-peers (TANDEM_EXAMPLE_TRACE_PEERS): must be networks" in capsys.readouterr().err


def test_an_invalid_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TANDEM_EXAMPLE_MAX_MESSAGE_BYTES", "lots")
    with pytest.raises(SystemExit) as stop:
        load_settings(ExampleSettings, [])
    assert stop.value.code == 2
    assert "TANDEM_EXAMPLE_MAX_MESSAGE_BYTES" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:50051", ("::1", 50051)), ("localhost:65535", ("localhost", 65535))],
)
def test_addresses_are_split_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", ":", "host", "host:", ":80", "host:-1", "host:65536", "host:８０", "host:1 "])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)
