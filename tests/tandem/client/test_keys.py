"""API keys are neither sent in the clear nor arguments."""

from pathlib import Path

import pytest
import trustme
import typer
from typer.testing import CliRunner

from tandem import AsyncClient, Client
from tandem.client import Rollouts
from tandem.commands import app
from tandem.commands.connection import ApiKey
from tandem.errors import FailedPrecondition

FAR = ["gateway.example.com:50050", "dns:///gateway.example.com:50050", "10.0.0.1:50050"]


@pytest.mark.parametrize("address", FAR)
def test_a_key_is_not_sent_to_another_machine_without_tls(address: str) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        Client(address, api_key="tandem_key")
    assert (caught.value.reason, "tandem_key" in caught.value.message) == ("KEY_IN_CLEAR", False)
    with Client(address), Client(address, api_key="tandem_key", allow_plaintext=True):
        pass


async def test_asyncio_clients_refuse_it_too(certificates: Path) -> None:
    with pytest.raises(FailedPrecondition, match="only with encryption"):
        AsyncClient(FAR[0], api_key="tandem_key")
    async with AsyncClient(FAR[0], api_key="tandem_key", ca=certificates):
        pass


def test_operators_are_held_to_it_too() -> None:
    with pytest.raises(FailedPrecondition, match="only with encryption"):
        Rollouts(FAR[0], api_key="tandem_key")
    with Rollouts(FAR[0], api_key="tandem_key", allow_plaintext=True):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:50050", "localhost:50050", "[::1]:50050", "dns:///localhost:50050"])
def test_on_this_machine_no_tls_is_needed(address: str) -> None:
    with Client(address, api_key="tandem_key"):
        pass


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture
def commands() -> typer.Typer:
    """Return a command that prints its key."""
    commands = typer.Typer()

    @commands.command()
    def key(api_key: ApiKey = None) -> None:
        typer.echo(str(api_key))

    return commands


def test_a_command_reads_the_key_from_a_file_or_the_variable(commands: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    run, environment = CliRunner().invoke, {"TANDEM_API_KEY": "from-variable"}
    assert run(commands, [], env={"TANDEM_API_KEY": None}).stdout == "None\n"
    assert run(commands, [], env=environment).stdout == "from-variable\n"
    assert run(commands, ["--api-key-file", str(file)], env=environment).stdout == "from-file\n"
    failed = run(commands, ["--api-key-file", str(tmp_path / "missing")])
    assert (failed.exit_code, "cannot be read" in failed.output) == (2, True)


@pytest.mark.parametrize("command", [["ask", "?"], ["models"], ["rollout", "rollback"]])
def test_no_command_takes_a_key_as_an_argument(command: list[str]) -> None:
    failed = CliRunner().invoke(app, [*command, "--api-key", "tandem_key"])
    assert failed.exit_code == 2
    assert "tandem_key" not in failed.output
