"""The service's side of the process that follows a grammar."""

import json
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from language_service.sampling.grammar_text import why_it_stopped
from language_service.sampling.grammar_worker import COMPLETE, FAILED, FRAME, TOKEN_BYTES


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

    def __init__(self, number: int, connection: Connection, grammar: str, command: Callable[[bytes], None]) -> None:
        self.compiled: Future[Reply] = _running()
        self.first: Future[Reply] = _running()  # the mask of the first token
        self.begun: Future[None] = _running()  # that mask is there, or it takes long
        self.num_bytes = 0  # memory of the process
        self.num_answers = 0  # in use
        self.number, self.connection = number, connection
        self._command = command
        self._lock = threading.Lock()
        self._queued: list[tuple[list[object], list[Future[Reply]]]] = []
        self._expected: deque[Future[Reply]] = deque([self.compiled, self.first])  # in the order of the frames
        self._process_id: int | None = None
        self._takes_turns = False
        self._is_proven, self._is_dear = False, False  # it has done a job of an answer, or a job has taken long
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
        if self._takes_turns and not self.num_answers and self._expected:
            self.kill()

    def kill(self, problem: str | None = None) -> None:
        """End the process, and fail its jobs.

        Args:
            problem: the reason, if it is the caller's fault.
        """
        # At once, so that no answer begins with a process that is about to end.
        self._end = Reply(problem=problem or "was stopped", is_fault=problem is None)
        self._command(b"k")

    # The pool's thread.

    def note_started(self, process_id: int) -> None:
        """Note the process."""
        self._process_id = process_id

    def note_turns(self) -> None:
        """Note that it takes turns, because a job takes long."""
        with self._lock:
            self._is_dear = self._is_dear or self.first.done()
            self._takes_turns = bool(self._expected)
            if not self._takes_turns:  # the job has ended meanwhile
                self._command(b"e")
        self._begin()

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

    def end(self, problem: str) -> None:
        """Fail all jobs after the end of the process."""
        while self.receive():
            pass
        self.abandon(Reply(problem=problem))

    def abandon(self, reply: Reply) -> None:
        """Give all jobs this reply.

        The process ends if it has not ended yet.
        """
        with self._lock:
            self._end = self._end or reply
            replies = [*self._expected, *(reply for _, replies in self._queued for reply in replies)]
            self._expected.clear()
            self._queued.clear()
            self.num_bytes = 0
        _resolve(replies, self._end)
        self._begin()
        self.connection.close()

    def _resolve_next(self, status: int, forced: tuple[int, ...], payload: bytes) -> None:
        with self._lock:
            future = self._expected.popleft()
            self._is_proven = self._is_proven or future not in (self.compiled, self.first)
            if self._takes_turns and not self._expected:
                self._takes_turns = False
                self._command(b"e")
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
        return self._is_proven and not self._is_dear and not self._takes_turns


def _running() -> "Future[Reply]":
    """Return a future that nobody can cancel."""
    future: Future[Reply] = Future()
    future.set_running_or_notify_cancel()
    return future


def _resolve(replies: Iterable["Future[Reply]"], reply: Reply) -> None:
    for future in replies:
        future.set_result(reply)
