"""Exit code, stdout and stderr of the `tandem` command."""

import base64
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem import Client
from tandem.commands import app
from tandem.commands.ask import read_request
from tandem.errors import InvalidArgument
from tandem.stack.stack import Stack
from tests.tandem import in_process

TANDEM = str(Path(sys.executable).parent / "tandem")
HEX_ID = "[0-9a-f]{32}"


def run(*arguments: str | Path, address: str = "127.0.0.1:1", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with its output piped."""
    environment = {**os.environ, "TANDEM_ADDRESS": address, **variables}
    return subprocess.run(
        [TANDEM, *map(str, arguments)], capture_output=True, encoding="utf-8", env=environment, timeout=60
    )


def test_ask_prints_the_text_on_stdout_and_the_table_on_stderr(stack: Stack, image_files: tuple[Path, Path]) -> None:
    done = in_process.run("ask", *image_files, "Which?", "--max-tokens", "6", "--seed", "3", address=stack.address)
    with Client(stack.address) as client:
        answer = client.ask("Which?", images=image_files, max_tokens=6, seed=3)
    assert (done.returncode, done.stdout) == (0, answer.text + "\n")
    assert re.search(r"^vision .*image 1 (encoded|cached).*image 2 (encoded|cached)", done.stderr, re.MULTILINE)
    assert re.search(rf"^total .*tiny-v1\.0\.0 *\nrequest +{HEX_ID}", done.stderr, re.MULTILINE)
    assert "\x1b" not in done.stdout + done.stderr


def test_a_second_ask_shows_the_cache_hit(stack: Stack, tmp_path: Path, image_files: tuple[Path, Path]) -> None:
    image = tmp_path / "fresh.png"
    image.write_bytes(image_files[0].read_bytes() + b"another file")  # PNG readers ignore trailing bytes
    first, second = (run("ask", image, "?", "--max-tokens", "1", address=stack.address) for _ in range(2))
    assert "image 1 encoded" in first.stderr
    assert "image 1 cached" in second.stderr


def test_ask_json_is_one_object(stack: Stack, image_files: tuple[Path, Path]) -> None:
    done = in_process.run("ask", image_files[0], "Which?", "--json", "--max-tokens", "2", address=stack.address)
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["images"][0]["num_visual_tokens"] == 32
    assert answer["timings"]["total_ms"] > 0


def test_ask_in_a_terminal_is_coloured(stack: Stack, image_files: tuple[Path, Path]) -> None:
    ours, theirs = pty.openpty()
    command = [TANDEM, "ask", "--address", stack.address, str(image_files[0]), "Which?", "--max-tokens", "4"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 65536).decode(errors="replace")
    os.close(ours)
    assert "\x1b[1mtotal" in shown


def test_a_request_file_is_sent_unchanged(stack: Stack, tmp_path: Path, image_files: tuple[Path, Path]) -> None:
    parts = [{"image": {"data": base64.b64encode(image_files[0].read_bytes()).decode()}}, {"text": "Which?"}]
    request = {"messages": [{"role": "ROLE_USER", "parts": parts}], "sampling": {"maxTokens": 3}}
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    done = in_process.run("ask", "--request", path, "--json", address=stack.address)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe{}", r"The file \S+ is not UTF-8: byte 0 cannot be read as text"),
        (b'{"messages": 3}', r"The file \S+ is not a GatewayGenerateRequest: .*messages.*"),
        (b'{"mesages": []}', r'The file \S+ is not a GatewayGenerateRequest: .*"mesages".*'),
        (b"", r"The file \S+ is not a GatewayGenerateRequest: .*"),
    ],
    ids=["not UTF-8", "wrong type", "unknown field", "empty"],
)
def test_a_bad_request_file_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        read_request(path)
    assert re.fullmatch(sentence, caught.value.message)


def test_a_request_file_that_is_not_utf8_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(b"\xff\xfe{}")
    done = run("ask", "--request", path)
    assert (done.returncode, done.stderr) == (1, f"The file {path} is not UTF-8: byte 0 cannot be read as text.\n")


def test_server_errors_name_the_request_id(stack: Stack, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for arguments in (("ask", ""), ("ask", broken, "What?"), ("ask", "What?", "--release", "other-v1.0.0")):
        done = run(*arguments, address=stack.address)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(rf"[A-Z].* \(request id {HEX_ID}\)\.", done.stderr.strip())


def test_an_unreachable_gateway_is_an_error_with_a_remedy() -> None:
    """A question may mention a file name."""
    for arguments in (("ask", "Is there a bag.png?"), ("ask", "Describe bag.png"), ("models",)):
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stderr == "Cannot reach a gateway at 127.0.0.1:1; start one with `tandem up`.\n"


def test_a_question_may_be_longer_than_a_file_name() -> None:
    done = run("ask", "What is it? " * 100)
    assert done.stderr.startswith("Cannot reach a gateway")


def test_text_that_the_terminal_cannot_encode_is_replaced(stack: Stack) -> None:
    arguments = ("ask", "Which?", "--max-tokens", "24", "--seed", "3", "--temperature", "1.5")
    with Client(stack.address) as client:
        answer = client.ask("Which?", max_tokens=24, seed=3, temperature=1.5)
    assert not answer.text.isascii()
    done = run(*arguments, address=stack.address, PYTHONIOENCODING="ascii")
    shown = answer.text.encode("ascii", "replace").decode()
    assert (done.returncode, done.stdout) == (0, f"{shown}\n")


def test_a_missing_image_is_one_sentence(tmp_path: Path) -> None:
    done = run("ask", tmp_path / "nothing.png", "What?")
    assert (done.returncode, done.stderr) == (1, f"{tmp_path}/nothing.png: No such file or directory.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "\udcff"),  # Python passes bytes of another encoding so
        ("ask", "What?", "--system", "\udcff"),
        ("rollout", "set", "\udcff"),
        ("rollout", "rollback", "--reason", "\udcff"),
    ],
)
def test_an_argument_that_is_not_utf8_is_one_sentence(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (1, "Not UTF-8, and cannot be sent: '\\udcff'.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask"], "QUESTION: it is missing"),
        (["ask", __file__], "is a file"),
        (["ask", "nothing.png"], "nothing.png looks like an image's file"),
        (["ask", "nothing.png", "neither.JPG"], "neither.JPG looks like an image's file"),
        (["ask", "--request", __file__, "What?"], "leave out QUESTION"),
        (["ask", "--request", __file__, "--seed", "1"], "leave out --seed"),
        (["ask", "What?", "--max-tokens", "0"], "--max-tokens"),
        (["ask", "What?", "--max-tokens", "99999999999"], "--max-tokens"),
        (["ask", "What?", "--seed", "9" * 30], "--seed"),
        (["models", "--timeout-s", "inf"], "--timeout-s"),
        (["rollout", "set", "a-v1.0.0", "--min-requests", "99999999999"], "--min-requests"),
        (["rollout", "set", "a-v1.0.0", "--steps", f"1:5m:{'9' * 30}r,100"], "WEIGHT"),
        (["models", "--colour"], "--colour"),
        (["up", "--precision", "int8"], "--precision"),
        (["models", "--address", "nowhere"], "host:port"),
        (["models", "--address", "http://127.0.0.1:50050"], "host:port"),
        (["models", "--address", "gateway..svc:50050"], "host:port"),
        (["ask", "What?", "--address", "127.0.0.1:99999"], "host:port"),
        (["checkpoint", "inspect"], "TAG or --preset: give one of the two"),
        (["checkpoint", "inspect", "a-v1.0.0", "--preset", "tiny"], "TAG or --preset: give one of the two"),
        (["checkpoint", "inspect", "--preset", "huge"], "'huge' is not one of 'qwen3-vl-8b'"),
        (["checkpoint", "new", "--preset", "tiny", "--tag", "a-v1.0.0", "--shards", "0"], "--shards"),
        (["keys", "new", ""], "TENANT"),
        (["keys", "new", 'a"b'], "TENANT"),
    ],
)
def test_a_wrong_argument_is_named_with_exit_code_2(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr


# Ctrl-C where gRPC's blocking calls wait: a lock is released there that the code around it releases once more.
INTERRUPTED_WAIT = """
import os, signal, sys, threading
from tandem.commands import main
wait = threading.Condition.wait
def interrupted_wait(self, timeout=None):
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and sys._getframe(1).f_globals["__name__"].startswith("grpc"):
        self._release_save()
        os.kill(os.getpid(), signal.SIGINT)
    return wait(self, timeout)
threading.Condition.wait = interrupted_wait
main()
"""


@pytest.mark.parametrize("command", [[TANDEM], [sys.executable, "-c", INTERRUPTED_WAIT]], ids=["any", "in gRPC"])
def test_ctrl_c_leaves_the_answer_without_a_traceback(stack: Stack, tmp_path: Path, command: list[str]) -> None:
    sampling = {"maxTokens": 900, "ignoreEos": True, "temperature": 1}
    request = {"messages": [{"role": "ROLE_USER", "parts": [{"text": "Go on for long"}]}], "sampling": sampling}
    (tmp_path / "request.json").write_text(json.dumps(request))
    arguments = ["ask", "--request", str(tmp_path / "request.json"), "--address", stack.address]
    asking = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert asking.stdout is not None
    asking.stdout.read(1)
    asking.send_signal(signal.SIGINT)
    _, errors = asking.communicate(timeout=60)
    assert (asking.returncode, errors) == (130, b"\nCancelled.\n")


def test_models_lists_the_release(stack: Stack) -> None:
    table = run("models", address=stack.address)
    assert re.search(r"^tiny-v1\.0\.0 \(default\) +ready +float32 .* 32 +1,024", table.stdout, re.MULTILINE)
    [info] = json.loads(run("models", "--json", address=stack.address).stdout)
    assert info["release"] == {"vision_tag": "tiny-v1.0.0", "language_tag": "tiny-v1.0.0"}


def test_a_dns_name_of_several_gateways_is_an_address() -> None:
    assert "Cannot reach a gateway at dns:///127.0.0.1:1;" in run("models", "--address", "dns:///127.0.0.1:1").stderr


def test_a_checkpoint_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    done = run("checkpoint", "new", "--preset", "tiny", "--tag", "nameless", "--models", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "'nameless' is not a tag" in done.stderr


def test_an_unknown_checkpoint_is_one_sentence_with_the_folder(tmp_path: Path) -> None:
    done = run("checkpoint", "inspect", "other-v1.0.0", "--models", tmp_path)
    message = f"The model store has no other-v1.0.0; it is empty, so check its path or mount ({tmp_path}).\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_python_m_tandem_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tandem", "--help"], capture_output=True, encoding="utf-8", timeout=60)
    ours, theirs = (text.splitlines() for text in (run("--help").stdout, done.stdout))
    assert theirs[0].startswith("Usage: python -m tandem [OPTIONS] COMMAND")
    assert theirs[1:] == ours[1:]


def test_version_and_help() -> None:
    version = run("version").stdout
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", version)
    assert run("--version").stdout == version
    overview = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f"\n  {name} " in overview for name in ("up", "ask", "models", "checkpoint"))
