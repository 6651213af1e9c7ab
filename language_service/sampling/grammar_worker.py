"""Compute masks of grammars in processes that can be stopped.

Run as a program. It reads a tokenizer, then starts one worker for each grammar, as a copy of itself. A worker serves
all answers under its grammar. A costly one computes only between two forward passes, see `costly_workers`. The kernel
ends it when a token takes too much processor time, and its allocations fail when it takes too much memory. So a costly
grammar can neither delay nor starve the service.

The service opens and kills workers as `chassis.process_starter` says. Messages of the service to a worker: the grammar,
then JSON lists of jobs: ["advance", answer, tokens] or ["close", answer]. Messages of a worker: frames, each a `FRAME`,
then forced tokens, then a mask or a problem. The grammar has two frames: that it is compiled, and its first mask. All
advances of a list have one frame each for their tokens, then one each for the mask. The first of these has the tokens
that seem to be forced, the second those that are, and the mask after them.
"""

import gc
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from chassis.own_memory import limit_memory, resident_bytes, touched_bytes
from chassis.process_starter import ProcessStarter
from chassis.process_time import StopTimer, yield_processors

FRAME = struct.Struct("<BQII")  # status, bytes of memory of the worker, forced tokens, and bytes that follow them
TOKEN_BYTES = 4  # of each forced token, an unsigned integer
GOES_ON, COMPLETE, FAILED = range(3)  # status of a frame
NO_MEMORY = 3  # exit status
QUICK_S = 0.01  # processor time up to the first mask after which a constraint is slow
DEAR_S = 0.005  # processor time of a job after which later ones yield the processors. Copying memory alone takes 3 ms.
_MAX_FORCED, _MAX_FORCED_S = 16, 0.02  # tokens in one frame, and processor time to check them
_STACK_BYTES = 2**20  # of each thread


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Limits of one worker: seconds of processor time, and bytes."""

    compile_s: float = 2.0
    token_s: float = 0.25
    answer_s: float = 10.0  # of all tokens of one answer
    memory_bytes: int = 128 * 2**20


def main() -> None:
    """Start workers until the service closes the socket.

    Arguments: a socket, the size of the vocabulary, `WorkerLimits` as JSON, and the end-of-sequence tokens. The
    tokenizer, as JSON, is on standard input.
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = WorkerLimits(**json.loads(sys.argv[3]))
    tokenizer = _load(sys.stdin.read(), int(sys.argv[2]), [int(one) for one in sys.argv[4:]])
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the service, which closes the socket when it has drained
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # so that workers share these pages
    ProcessStarter(control, lambda connection: _serve(Connection(connection), tokenizer, limits)).run()


def _load(tokenizer_json: str, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    """Return a tokenizer whose added tokens are text.

    Special ones are not.
    """
    tokenizer = LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=eos_token_ids)
    added = {one["id"]: one for one in json.loads(tokenizer_json).get("added_tokens", ())}
    if all(one["special"] for one in added.values()):
        return tokenizer
    # The library takes all added tokens as special. So a text such as '<tool_call>' could not be written.
    wrapper = TokenizerWrapper(_Vocabulary(tokenizer, added, eos_token_ids[0]))
    return LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=eos_token_ids)


class _Vocabulary:
    """A tokenizer in Python, in the form the library takes."""

    bos_token_id = None

    def __init__(self, tokenizer: LLTokenizer, added: dict[int, dict[str, Any]], eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.special_token_ids = [token_id for token_id, one in added.items() if one["special"]]
        self.tokens = [
            b"" if tokenizer.is_special_token(token_id) else tokenizer.decode_bytes([token_id])
            for token_id in range(tokenizer.vocab_size)
        ]
        for token_id, one in added.items():
            self.tokens[token_id] = one["content"].encode()
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.tokenize_bytes(text)


def _serve(connection: Connection, tokenizer: LLTokenizer, limits: WorkerLimits) -> None:
    threading.stack_size(_STACK_BYTES)
    worker = _Worker(connection, limits)
    # In a thread of its own, because a thread that yields the processors goes on doing so.
    preparation = threading.Thread(target=worker.prepare, args=[tokenizer])
    preparation.start()
    preparation.join()
    with _exit_at_end():
        while True:
            worker.run(json.loads(connection.recv_bytes()))


@contextmanager
def _exit_at_end() -> Iterator[None]:
    """End this process if the block fails."""
    try:
        yield
    except (EOFError, ConnectionError):
        os._exit(0)  # the service has closed the connection
    except MemoryError:
        os._exit(NO_MEMORY)
    except BaseException:
        os._exit(1)


@dataclass(slots=True, eq=False)
class _Worker:
    """One grammar, and the states of its answers."""

    connection: Connection
    limits: WorkerLimits
    states: dict[int, LLMatcher] = field(default_factory=dict)
    used_s: dict[int, float] = field(default_factory=dict)  # processor time of each answer
    start: LLMatcher | None = None
    frames: list[bytes] = field(default_factory=list)  # not sent yet
    timer: StopTimer = field(default_factory=StopTimer)
    yields: bool = False  # the processors, from the first dear job on
    jumps_ahead: bool = True  # until that takes too long
    num_base_bytes: int = 0  # what the start has copied, less the resident memory then. Most of that is shared.

    def prepare(self, tokenizer: LLTokenizer) -> None:
        """Compile on idle processors, up to the first mask."""
        yield_processors(threading.get_native_id())
        limit_memory(self.limits.memory_bytes)
        self.num_base_bytes = touched_bytes() - resident_bytes()
        with _exit_at_end():
            self._compile(tokenizer, self.connection.recv_bytes().decode())

    def _compile(self, tokenizer: LLTokenizer, grammar: str) -> None:
        """Compile the grammar and send its first mask."""
        self.timer.start(QUICK_S)
        signal.setitimer(signal.ITIMER_PROF, self.limits.compile_s)
        self.start = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        self._add_frame(self.start, [])
        self._send()
        signal.setitimer(signal.ITIMER_PROF, self.limits.token_s)
        self._add_mask(self.start, b"" if self.start.is_error() else self.start.compute_bitmask())
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.timer.cancel()
        self._send()

    def run(self, jobs: list[list[Any]]) -> None:
        """Do a list of jobs."""
        advances = [(answer, *rest) for kind, answer, *rest in jobs if kind == "advance"]
        for answer, tokens in advances:
            with _Timer(self, answer):
                if answer not in self.states:
                    assert self.start is not None
                    self.states[answer] = self.start.deep_copy()
                self.states[answer].consume_tokens(tokens)
                self._add_frame(self.states[answer], self._forced(self.states[answer]))
        self._send()
        for answer, _ in advances:  # once all tokens are consumed, because each answer may be complete
            with _Timer(self, answer):
                state = self.states[answer]
                self._add_mask(state, b"" if state.is_stopped() else state.compute_bitmask())
        self._send()
        for kind, answer, *_ in jobs:
            if kind == "close":  # an answer may end after its last token was queued
                self.states.pop(answer, None)
                self.used_s.pop(answer, None)

    def _add_mask(self, state: LLMatcher, mask: bytes) -> None:
        """Add the forced tokens and the mask after them."""
        forced, started_s = [], time.process_time()
        for token in self._forced(state):
            self.jumps_ahead = time.process_time() - started_s < _MAX_FORCED_S
            # The library splits all forced text at once. After a part of it, it may split the rest in another way.
            if not self.jumps_ahead or mask.count(0) != len(mask) - 1 or mask[token // 8] != 1 << token % 8:
                break
            state.consume_token(token)
            forced.append(token)
            mask = b"" if state.is_stopped() else state.compute_bitmask()
        if not state.is_error():
            state.rollback(len(forced))
        self._add_frame(state, forced, mask)

    def _add_frame(self, state: LLMatcher, forced: list[int], payload: bytes = b"") -> None:
        status = FAILED if state.is_error() else COMPLETE if state.is_stopped() else GOES_ON
        payload = state.get_error().encode() if status == FAILED else payload
        header = FRAME.pack(status, self.num_base_bytes + resident_bytes(), len(forced), len(payload))
        self.frames.append(header + struct.pack(f"<{len(forced)}I", *forced) + payload)

    def _forced(self, state: LLMatcher) -> list[int]:
        """Return tokens that seem to be forced next."""
        return state.compute_ff_tokens()[:_MAX_FORCED] if self.jumps_ahead and not state.is_stopped() else []

    def _send(self) -> None:
        if self.frames:
            self.connection.send_bytes(b"".join(self.frames))
            self.frames.clear()


class _Timer:
    """Limits the processor time of a block.

    The default action of a signal does. So it also ends code that never returns to Python. Long before that, the kernel
    stops the process. It goes on between two forward passes, and its later jobs run only on idle processors.
    """

    def __init__(self, worker: _Worker, answer: int) -> None:
        self._worker, self._answer = worker, answer

    def __enter__(self) -> None:
        limits, self._used_s = self._worker.limits, self._worker.used_s.get(self._answer, 0.0)
        signal.setitimer(signal.ITIMER_PROF, max(0.001, min(limits.token_s, limits.answer_s - self._used_s)))
        self._worker.timer.start(DEAR_S)
        self._started_s = time.process_time()

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._worker.timer.cancel()
        took_s = time.process_time() - self._started_s
        self._worker.used_s[self._answer] = self._used_s + took_s
        if took_s > DEAR_S and not self._worker.yields:
            self._worker.yields = True
            yield_processors(os.getpid())


if __name__ == "__main__":
    main()
