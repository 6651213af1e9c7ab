"""The service's side of the process that follows a grammar."""

import json
import os
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from chassis.process_time import is_stopped, processor_s
from language_service.sampling.grammar_text import why_it_stopped
from language_service.sampling.grammar_worker import COMPLETE, DEAR_S, FAILED, FRAME, QUICK_S, TOKEN_BYTES


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker says about a state of an answer."""

    is_complete: bool = False  # no token can follow
    problem: str | None = None  # why the answer cannot continue
    is_fault: bool = False  # whether that is a fault of the service
    forced: tuple[int, ...] = ()  # the next tokens, each the only one allowed. Without a mask, that is not certain yet.
    mask: bytes = b""  # after the forced tokens, one bit for each token


Replies = Sequence["Future[Reply]"]


class GrammarProcess:
    """One grammar, which a process of its own follows.

    Used on the event loop and on the engine's thread.
    """

    def __init__(
        self, number: int, connection: Connection, theirs: socket.socket, grammar: str, command: Callable[..., None]
    ) -> None:
        """Prepare a process. The first `go_on` starts it.

        Args:
            number: of the worker.
            connection: the service's end of its connection.
            theirs: the other end.
            grammar: what it compiles.
            command: sends a command of `chassis.process_starter`, a number and descriptors.
        """
        self.compiled: Future[Reply] = _running()
        self.first: Future[Reply] = _running()  # the mask of the first token
        self.begun: Future[None] = _running()  # that mask is there, or it takes long
        self.num_bytes = 0  # memory of the process
        self.num_answers = 0  # in use
        self.was_stopped = True  # and has not gone on
        self.number, self.connection = number, connection
        self._command = command
        self._lock = threading.Lock()
        self._queued: list[tuple[list[object], list[Future[Reply]]]] = []
        self._expected: deque[Future[Reply]] = deque([self.compiled, self.first])  # in the order of the frames
        self._theirs: socket.socket | None = theirs  # until it starts
        self._process_id: int | None = None
        self._started_s = 0.0  # processor time of the process before the jobs in work
        self._is_proven, self._is_dear = False, False  # it has done a job of an answer, or jobs have taken long
        self._end: Reply | None = None  # of all jobs, once the process has ended or shall end
        connection.send_bytes(grammar.encode())

    def ask(self, kind: str, answer: int, *details: object, num_replies: int = 1) -> Replies:
        """Queue a job, which `send` passes on.

        Returns its replies. All jobs of a worker that has ended fail.
        """
        replies = [_running() for _ in range(num_replies)]
        with self._lock:
            if self._end is None:
                self._queued.append(([kind, answer, *details], replies))
            else:
                _resolve(replies, self._end)
        return replies

    def send(self) -> None:
        """Pass the queued jobs on, unless others are in work.

        One message at a time, so that this never waits for a busy worker.
        """
        with self._lock:
            if self._expected or not self._queued or self._end is not None:
                return
            queued, self._queued = self._queued, []
            self._started_s += self._spent_s()
            # The frames of a list: one for each job, then one for the mask of each advance.
            self._expected.extend(replies[0] for _, replies in queued if replies)
            self._expected.extend(reply for _, replies in queued for reply in replies[1:])
            with suppress(OSError):  # it has ended, and `end` follows
                self.connection.send_bytes(json.dumps([job for job, _ in queued]).encode())

    def close_answer(self, answer: int) -> None:
        """Forget an answer. Costly work for nobody is stopped."""
        self.num_answers -= 1
        self.ask("close", answer, num_replies=0)
        self.send()
        if not self.num_answers and self._expected and self._spent_s() > DEAR_S:
            self.kill()

    def kill(self, problem: str | None = None) -> None:
        """End the process, and fail its jobs.

        Args:
            problem: the reason, if it is the caller's fault.
        """
        # At once, so that no answer begins with a process that is about to end.
        self._end = _last_reply(problem)
        self._start()  # so that its end is reported
        self._command(b"k", self.number)

    # The pool's thread.

    def note_stopped(self, process_id: int) -> None:
        """Note that the process was stopped.

        By itself at its start, by a timer, or by `stop`. In the last case it may have gone on.
        """
        self._process_id = process_id
        self.was_stopped = self.was_stopped or is_stopped(process_id)
        if self._spent_s() > QUICK_S:
            self._begin()

    def stop(self) -> None:
        """Stop the process."""
        self.was_stopped = True
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Start the process, or let a stopped one go on."""
        self._start()
        if self.was_stopped:
            self.was_stopped = False
            self._signal(signal.SIGCONT)

    def receive(self) -> bool:
        """Read one message. Returns False after the last one."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            return False
        offset = 0
        while offset < len(message):
            status, self.num_bytes, num_forced, size = FRAME.unpack_from(message, offset)
            offset += FRAME.size
            forced = struct.unpack_from(f"<{num_forced}I", message, offset)
            offset += num_forced * TOKEN_BYTES + size
            self._resolve_next(status, forced, message[offset - size : offset])
        self.send()
        return True

    def end(self, problem: str | None) -> None:
        """Fail all jobs after the end of the process.

        Args:
            problem: the reason, if it is the caller's fault.
        """
        while self.receive():
            pass
        self.abandon(problem)

    def abandon(self, problem: str | None = None) -> None:
        """Fail all jobs.

        The process ends if it has not ended yet.

        Args:
            problem: the reason, if it is the caller's fault.
        """
        with self._lock:
            self._end = self._end or _last_reply(problem)
            replies = [*self._expected, *(reply for _, replies in self._queued for reply in replies)]
            self._expected.clear()
            self._queued.clear()
            self.num_bytes = 0
            theirs, self._theirs = self._theirs, None
        _resolve(replies, self._end)
        self._begin()
        self.connection.close()
        if theirs is not None:
            theirs.close()

    def _start(self) -> None:
        """Start the process, unless that was done."""
        with self._lock:
            theirs, self._theirs = self._theirs, None
        if theirs is not None:
            with theirs:
                self._command(b"o", self.number, theirs.fileno())

    def _resolve_next(self, status: int, forced: tuple[int, ...], payload: bytes) -> None:
        with self._lock:
            future = self._expected.popleft()
            if future not in (self.compiled, self.first):
                self._is_proven = True
                self._is_dear = self._is_dear or self._spent_s() > DEAR_S
        if status == FAILED:
            error = payload.decode()
            is_new = future in (self.compiled, self.first)
            future.set_result(Reply(problem=error if is_new else why_it_stopped(error)))
        else:
            future.set_result(Reply(status == COMPLETE, forced=forced, mask=payload))
        if future is self.first:
            self._begin()

    def _begin(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._end is not None

    @property
    def is_quick(self) -> bool:
        """Whether a step may wait for the next reply.

        A new process is not quick yet: the memory that it writes to for the first time is copied.
        """
        return self._is_proven and not self._is_dear

    @property
    def is_costly(self) -> bool:
        """Whether its jobs in work would delay a busy service."""
        return bool(self._expected) and (not self.is_quick or self._spent_s() > DEAR_S)

    def _spent_s(self) -> float:
        """Return the processor time of the jobs in work."""
        return 0.0 if self._process_id is None else processor_s(self._process_id) - self._started_s

    def _signal(self, number: signal.Signals) -> None:
        # Its end is reported at once. Process ids are given in a circle, so no other process has this one that soon.
        if self._process_id is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process_id, number)


def _last_reply(problem: str | None) -> Reply:
    return Reply(problem=problem or "was stopped", is_fault=problem is None)


def _running() -> "Future[Any]":
    """Return a future that nobody can cancel."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _resolve(replies: Iterable["Future[Reply]"], reply: Reply) -> None:
    for future in replies:
        future.set_result(reply)
