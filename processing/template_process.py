"""Keep a process that renders one chat template.

See `template_worker` for the other side.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from chassis.errors import FailedPrecondition, Unavailable
from chassis.lru import LruStore
from processing import template_worker
from processing.template_worker import LENGTH

_CACHE_BYTES = 4 * 2**20
# The worker sees nothing else of the environment, where services have passwords.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")


class TemplateProcess:
    """A process for one template. For any number of threads.

    It starts anew when it has ended.
    """

    def __init__(self, source: str) -> None:
        """Start the process and compile the template.

        Raises:
            FailedPrecondition: reason 'BAD_CHECKPOINT', it is no valid template, or takes too much to compile.
        """
        self._source = source
        self._lock = threading.Lock()  # of the program
        self._cache_lock = threading.Lock()
        # Conversations of one form have equal arguments, because placeholders replace their texts.
        self._replies = LruStore[bytes, dict[str, str]](max_bytes=_CACHE_BYTES)
        self._program: subprocess.Popen[bytes] | None = None
        with self._lock:
            self.renders_tools = self._start()

    def render(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Return the worker's reply, see `template_worker`.

        Equal arguments get an equal reply.

        Raises:
            FailedPrecondition: reason 'BAD_CHECKPOINT', the template takes too much time or memory.
            Unavailable: reason 'TEMPLATE_FAILED', with a retry delay. The process was killed.
        """
        message = _encoded(arguments)
        with self._cache_lock, self._replies.use(message) as known:
            if known is not None:
                return known
        with self._lock:
            if self._program is None:
                self._start()
            reply = self._ask(message)
        with self._cache_lock:
            self._replies.put(message, reply, len(message) + sum(map(len, reply.values())))
        return reply

    def has_rendered(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the reply is known."""
        with self._cache_lock:
            return _encoded(arguments) in self._replies

    def _start(self) -> bool:
        """Start the program. Return whether the template renders tools."""
        path = os.pathsep.join(filter(None, sys.path))  # the packages may lie where only this process looks for them
        self._program = subprocess.Popen(
            [sys.executable, "-P", template_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": path} | {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            cwd=Path("/"),
        )
        self._stop = weakref.finalize(self, _end, self._program)
        reply = self._ask(_encoded({"source": self._source}))
        if "invalid" in reply:
            self._forget()
            raise _bad(f"The chat template is not valid: {reply['invalid']}")
        return bool(reply["renders_tools"])

    def _ask(self, data: bytes) -> dict[str, Any]:
        assert self._program is not None
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it has ended, so the answer is empty, too
                self._program.stdin.write(LENGTH.pack(len(data)) + data)
                self._program.stdin.flush()
            head = self._program.stdout.read(LENGTH.size)
            reply = self._program.stdout.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
        except BaseException:  # what comes next would be the answer to this message
            self._forget()
            raise
        if not reply:
            status = self._forget()
            if status == -signal.SIGKILL:  # by the system or a person, because its limits end it in other ways
                message = "The process that renders the chat template has ended, so retry the request."
                raise Unavailable(message, reason="TEMPLATE_FAILED", retry_after_s=1)
            what = "time" if status == -signal.SIGPROF else "memory"
            raise _bad(f"The chat template takes too much {what}.")
        return dict(json.loads(reply))

    def _forget(self) -> int | None:
        """End the program. Return its status."""
        program, self._program = self._program, None
        self._stop()
        return program.returncode if program is not None else None


def _end(program: "subprocess.Popen[bytes]") -> None:
    """End a program that may have ended itself."""
    assert program.stdin is not None
    assert program.stdout is not None
    with suppress(BrokenPipeError):
        program.stdin.close()
    if not program.stdout.read(1):  # it has closed its side, so its own end is near and has the true status
        with suppress(subprocess.TimeoutExpired):
            program.wait(1)
    program.kill()
    program.wait()
    program.stdout.close()


def _encoded(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode()


def _bad(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BAD_CHECKPOINT")
