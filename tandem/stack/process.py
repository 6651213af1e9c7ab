"""One service as a child process whose log lines are read as they come."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

# Asks the kernel to kill the service when its parent dies, kill -9 included, and then becomes the service. A program
# of its own because running Python between fork and exec (preexec_fn) can deadlock beside gRPC's threads.
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else the parent died before the line above
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceProcess:
    """A child process `python -m MODULE FLAGS...`.

    Attributes:
        ready: the fields of its 'ready' log line (`port`, `metrics_port`); empty until then.
        exit_code: its exit code once it has ended; negative is a signal.
        last_words: its last complaint, to tell the user why it ended; empty where it had none.
    """

    def __init__(
        self,
        name: str,
        module: str,
        flags: Sequence[str],
        on_log: Callable[[str, str], None],
        changed: threading.Condition,
    ) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.last_words = ""
        self._command = [sys.executable, "-m", module, *flags]
        self._on_log = on_log
        self._changed = changed  # notified when `ready` or `exit_code` is set
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name=f"{name}-log", daemon=True)

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process and begin to read what it writes."""
        guard = [sys.executable, "-S", "-c", _GUARD, str(os.getpid())] if sys.platform == "linux" else []
        self._process = subprocess.Popen(
            [*guard, *self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # a Ctrl-C in the terminal is the parent's: it stops the services in order
        )
        self._reader.start()

    def terminate(self) -> None:
        """Ask the process to drain and end."""
        if self._process is not None:
            self._process.terminate()  # does nothing once it has ended

    def kill(self) -> None:
        """End the process and whatever it started at once, and wait until it is gone."""
        if self._process is not None and self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.wait(None)

    def wait(self, timeout_s: float | None) -> None:
        """Wait until the process has ended and its last line was read, or until the time is up."""
        if self._reader.ident is not None:
            self._reader.join(timeout_s)

    def _read(self) -> None:
        """Follow the output to its end, then wait for the exit code."""
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Shown before it counts, so that a log reads in the order of what it causes. Where it cannot be shown any
            # more it is read all the same: a service whose pipe is full stops at its next line.
            with contextlib.suppress(OSError):
                self._on_log(self.name, line.rstrip("\n"))
            self._notice(line.rstrip("\n"))
        code = self._process.wait()
        with self._changed:
            self.exit_code = code
            self._changed.notify_all()

    def _notice(self, line: str) -> None:
        """Take the ready event and complaints out of a line."""
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):  # a usage error or a traceback: its last line says most
            self.last_words = line.strip().removeprefix("error: ") or self.last_words
        elif entry.get("event") == "ready":
            with self._changed:
                self.ready = entry
                self.last_words = ""
                self._changed.notify_all()
        elif entry.get("level") in ("error", "critical"):
            self.last_words = str(entry.get("error") or entry["event"])
