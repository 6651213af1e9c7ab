"""Keep a worker process for each grammar in use.

See `grammar_worker` for the workers' side.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import structlog

from chassis.process_starter import COMMAND, EVENT
from language_service.sampling import grammar_worker
from language_service.sampling.costly_workers import costly_workers
from language_service.sampling.grammar_process import GrammarProcess
from language_service.sampling.grammar_text import why_it_ended
from language_service.sampling.grammar_worker import WorkerLimits

_log = structlog.get_logger()

_SEND_BUFFER_BYTES = 2**20  # so that no grammar waits for a program that is still starting
# malloc of glibc then asks for huge pages. With a large vocabulary, a worker starts and ends six times as fast, because
# the page tables are short.
_HUGE_PAGES = "glibc.malloc.hugetlb=1"


class GrammarPool:
    """The workers of one tokenizer.

    Starts a program that loads the tokenizer, and lets it start workers.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        limits: WorkerLimits,
        max_bytes: int,
    ) -> None:
        """Start the program.

        Not on the event loop, because it takes a moment.

        Args:
            tokenizer_json: text of a `tokenizer.json`.
            vocab_size: tokens of the model.
            eos_token_ids: tokens that end an answer.
            limits: of each worker.
            max_bytes: of all workers. Above it, one that no answer uses is stopped, or else the largest.
        """
        self._limits, self._max_bytes = limits, max_bytes
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [theirs.fileno(), vocab_size, json.dumps(asdict(limits)), *eos_token_ids]
        with theirs:
            self._program = subprocess.Popen(
                # -P: its folder is no place of modules. The packages may lie where only this process looks for them.
                [sys.executable, "-P", str(Path(grammar_worker.__file__)), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_settings()},
            )
        self._workers: dict[int, GrammarProcess] = {}
        self._num_started = 0
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._control, selectors.EVENT_READ, self._read_control)
        self.is_running = True
        assert self._program.stdin is not None
        with suppress(OSError), self._program.stdin as file:  # if it fails, the thread notices
            file.write(tokenizer_json.encode())
        self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
        self._thread.start()

    def open(self, grammar: str) -> GrammarProcess:
        """Return a worker that starts and compiles a grammar.

        Raises:
            OSError: the program has ended.
        """
        with self._lock:
            if not self.is_running:
                raise OSError("the program has ended")
            ours, theirs = socket.socketpair()
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            self._num_started += 1
            number = self._num_started
            worker = GrammarProcess(number, Connection(ours.detach()), theirs, grammar, self._send)
            self._workers[number] = worker
            self._selector.register(worker.connection, selectors.EVENT_READ, lambda: self._read(worker))
        costly_workers.update(worker)  # starts it, or does so between two forward passes
        return worker

    def close(self) -> None:
        """End the program and all workers."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _send(self, command: bytes, number: int, *descriptors: int) -> None:
        with suppress(OSError):  # the program has ended, which the thread notices
            socket.send_fds(self._control, [COMMAND.pack(command, number)], descriptors)

    def _run(self) -> None:
        try:
            while self.is_running:
                for key, _ in self._selector.select():
                    key.data()
        finally:
            with self._lock:
                self.is_running = False
                self._control.close()
            for worker in self._workers.values():
                worker.abandon()
                costly_workers.update(worker)
            self._selector.close()
            if self._program.wait() != 0:
                _log.error("grammar program ended", status=self._program.returncode)

    def _read(self, worker: GrammarProcess) -> None:
        if not worker.receive():
            self._unregister(worker)  # the program tells why it ended
            return
        costly_workers.update(worker)
        workers = [one for one in list(self._workers.values()) if not one.has_ended]  # `open` may add one meanwhile
        if len(workers) > 1 and sum(one.num_bytes for one in workers) > self._max_bytes:
            largest = max(workers, key=lambda one: (one.num_answers == 0 and one.first.done(), one.num_bytes))
            largest.kill("takes too much memory beside the other constraints in use, so make it simpler or retry later")

    def _read_control(self) -> None:
        message = b""
        with suppress(OSError):
            message = self._control.recv(EVENT.size)
        if not message:
            self.is_running = False
            return
        kind, number, detail = EVENT.unpack(message)
        with self._lock:
            worker = self._workers[number]
        if kind == b"s":
            worker.note_stopped(detail)
        else:
            del self._workers[number]
            self._unregister(worker)
            status = os.waitstatus_to_exitcode(detail)
            problem = why_it_ended(status, self._limits, is_compiled=worker.compiled.done())
            if problem is None and not worker.has_ended:  # nobody has killed it
                _log.error("constraint process ended", status=status)
            worker.end(problem)
        costly_workers.update(worker)

    def _unregister(self, worker: GrammarProcess) -> None:
        with suppress(KeyError, OSError):  # it is closed if both messages of its end came at once
            self._selector.unregister(worker.connection)


def _settings() -> dict[str, str]:
    """Return environment variables of the program."""
    tunables = [os.environ.get("GLIBC_TUNABLES"), _HUGE_PAGES]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "GLIBC_TUNABLES": ":".join(filter(None, tunables)),
    }
