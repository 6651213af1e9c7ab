"""Run a service as a child process with its logs."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

# Asks the kernel to kill the service when its parent dies, even by kill -9, then becomes the service. It is a separate
# program because Python code between fork and exec (preexec_fn) can deadlock with gRPC's threads.
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # the parent did not die before prctl
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ServiceProcess:
    """A child process `python -m MODULE FLAGS...`.

    Attributes:
        ready: fields of its 'ready' log line, such as `port` and `metrics_port`. Empty before that line.
        exit_code: its exit code, or None while it runs. A negative code is a signal.
        last_error: its last error message, the probable reason of an exit. Empty without one.
    """

    def __init__(
        self,
        name: str,
        module: str,
        flags: Sequence[str],
        on_log: Callable[[str, str], None],
        changed: threading.Condition,
        *,
        python: str = sys.executable,
    ) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.last_error = ""
        self._command = [python, "-m", module, *flags]
        self._on_log = on_log
        self._changed = changed  # notified when `ready` or `exit_code` is set
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, name=f"{name}-log", daemon=True)

    @property
    def pid(self) -> int:
        """Process id, 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process and read its output on a thread."""
        guard = [sys.executable, "-S", "-c", _GUARD, str(os.getpid())] if sys.platform == "linux" else []
        self._process = subprocess.Popen(
            [*guard, *self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            process_group=0,  # Ctrl-C reaches only the parent, which stops the services in order
        )
        self._reader.start()

    def terminate(self) -> None:
        """Ask the process to drain and exit."""
        if self._process is not None:
            self._process.terminate()  # does nothing after its end

    def kill(self) -> None:
        """Kill the process and its children, then wait."""
        if self._process is not None and self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.wait(None)

    def wait(self, timeout_s: float | None) -> None:
        """Wait for the end of the process and its output.

        Args:
            timeout_s: longest wait, seconds. None waits without limit.
        """
        if self._reader.ident is not None:
            self._reader.join(timeout_s)

    def _read(self) -> None:
        """Read all output, then wait for the exit code."""
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                # Show the line before acting on it, so that the log is in causal order. Keep reading if showing fails:
                # a service whose pipe is full blocks at its next line.
                with contextlib.suppress(OSError):
                    self._on_log(self.name, line.rstrip("\n"))
                self._note(line.rstrip("\n"))
        code = self._process.wait()
        with self._changed:
            self.exit_code = code
            self._changed.notify_all()

    def _note(self, line: str) -> None:
        """Note the ready event or an error in a line."""
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):  # the last line of a usage error or traceback says most
            self.last_error = line.strip().removeprefix("error: ") or self.last_error
        elif entry.get("event") == "ready":
            with self._changed:
                self.ready = entry
                self.last_error = ""
                self._changed.notify_all()
        elif entry.get("level") in ("error", "critical"):
            self.last_error = str(entry.get("error") or entry["event"])
