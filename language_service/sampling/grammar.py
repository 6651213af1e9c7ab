"""Compile constraints to grammars that allow or forbid tokens."""

import asyncio
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, grammar_from
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from chassis.errors import ResourceExhausted
from chassis.single_flight import SingleFlight
from language_service.sampling.options import Constraint, bad_constraint

# R constrained rows, V vocabulary

_MAX_CACHED = 128  # compiled grammars per model
_MAX_COMPILING = 32  # constraints in flight per model. Each may take seconds.
_MAX_PROBLEM_CHARACTERS = 300
_FORMATS = {"regex": "regex", "choices": "choice", "grammar": "lark"}  # names of llguidance

# Compiles the grammar on standard input, without a vocabulary. Killed after two seconds of CPU time or above 512 MiB.
_TRY_TO_COMPILE = """
import resource, sys
sys.path[:] = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
from llguidance import LLMatcher
LLMatcher.validate_grammar(sys.stdin.read())
"""


class Grammar:
    """The state of one answer in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def accept(self, token_id: int) -> None:
        """Advance by the next token of the answer."""
        self.matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete: no token can follow."""
        return self.matcher.is_stopped()

    @property
    def problem(self) -> str | None:
        """The reason why the answer cannot continue, or None.

        A grammar may become too complex on the way.
        """
        return _first_line(self.matcher.get_error()) if self.matcher.is_error() else None


@cache
def _executor() -> LLExecutor:
    return LLExecutor()  # its threads do not need the interpreter's lock


def allowed_tokens(grammars: Sequence[Grammar], vocab_size: int) -> NDArray[np.bool_]:
    """Return the allowed next tokens of each answer, [R, V].

    A complete answer allows only end-of-sequence.
    """
    mask_RW = allocate_token_bitmask(len(grammars), vocab_size)  # W words of 32 bits
    fill_next_token_bitmask_par(_executor(), [(grammar.matcher, row) for row, grammar in enumerate(grammars)], mask_RW)
    return np.unpackbits(mask_RW.view(np.uint8), axis=1, count=vocab_size, bitorder="little").view(np.bool_)


class GrammarCompiler:
    """Compiles constraints for one tokenizer and caches the grammars.

    Used on the event loop.
    """

    def __init__(self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None  # made when first needed, because it takes time and memory
        self._cached: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._compiling: SingleFlight[Constraint, LLMatcher] = SingleFlight()
        # One thread, so that compiling takes at most one core from the models.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    async def compile(self, constraint: Constraint) -> Grammar:
        """Return a grammar in its initial state.

        Raises:
            InvalidArgument: reason 'BAD_CONSTRAINT', with the field at fault.
            ResourceExhausted: reason 'QUEUE_FULL', with a retry delay.
        """
        if constraint not in self._cached:
            if constraint not in self._compiling and len(self._compiling) >= _MAX_COMPILING:
                message = f"{_MAX_COMPILING} constraints are compiling already, so retry later."
                raise ResourceExhausted(message, reason="QUEUE_FULL", retry_after_s=1)
            compiled = await self._compiling.run(constraint, lambda: self._compile_on_thread(constraint))
            self._cached[constraint] = compiled.result
            if len(self._cached) > _MAX_CACHED:
                self._cached.popitem(last=False)
        self._cached.move_to_end(constraint)
        return Grammar(self._cached[constraint].deep_copy())

    def close(self) -> None:
        """Let the thread end after its current constraint."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _compile_on_thread(self, constraint: Constraint) -> LLMatcher:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, constraint)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
        try:
            grammar = _grammar(constraint)
            # The compiler limits time and memory of a regex itself, but not of a schema with many patterns.
            if constraint.kind in ("json_schema", "grammar") and not _compiles_in_time(grammar):
                raise bad_constraint(constraint.kind, "takes too long to compile, so make it simpler")
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError as error:
            raise bad_constraint(constraint.kind, f"is not valid: {_first_line(str(error))}") from None
        if matcher.is_error():
            raise bad_constraint(constraint.kind, f"cannot be followed: {_first_line(matcher.get_error())}")
        return matcher


def _grammar(constraint: Constraint) -> str:
    if constraint.kind == "json_schema":
        # With flexible whitespace, an unsure model could generate whitespace forever.
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides={"whitespace_flexible": False})
    return grammar_from(_FORMATS[constraint.kind], constraint.text)


def _compiles_in_time(grammar: str) -> bool:
    """Return whether a trial compilation finishes in time.

    It runs in a process of its own, because nothing can stop a thread.
    """
    # Isolated, so that nothing but the code above runs. But with this process' path: its packages may lie elsewhere.
    command = [sys.executable, "-I", "-c", _TRY_TO_COMPILE, *filter(None, sys.path)]
    attempt = subprocess.run(command, input=grammar.encode(), stderr=subprocess.DEVNULL, check=False)
    return attempt.returncode >= 0


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:_MAX_PROBLEM_CHARACTERS].rstrip(".")
