"""Which tokens a constraint allows next: grammars, compiled once beside the event loop and followed by every answer."""

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

_MAX_KEPT = 128  # compiled grammars of one model
_MAX_COMPILING = 32  # constraints of one model under way; each may take its seconds
_MAX_PROBLEM_CHARACTERS = 300

# Reads a grammar and compiles it, without a vocabulary, in two seconds of processor time and 512 MiB, or is killed.
_TRY_TO_COMPILE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
from llguidance import LLMatcher
LLMatcher.validate_grammar(sys.stdin.read())
"""


class Grammar:
    """Where one answer stands in what it must be."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    def accept(self, token_id: int) -> None:
        """Note the next token of the answer."""
        self.matcher.consume_token(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow, so that the answer has ended."""
        return self.matcher.is_stopped()

    @property
    def problem(self) -> str | None:
        """Why the answer cannot be continued: a grammar may turn out to be too complex on its way."""
        return _first_line(self.matcher.get_error()) if self.matcher.is_error() else None


@cache
def _executor() -> LLExecutor:
    return LLExecutor()  # its threads work outside of the interpreter's lock


def allowed_tokens(grammars: Sequence[Grammar], vocab_size: int) -> NDArray[np.bool_]:
    """Return which tokens each answer may go on with, [R, V]; only end-of-sequence where nothing can follow."""
    mask_RW = allocate_token_bitmask(len(grammars), vocab_size)  # W words of 32 bits
    fill_next_token_bitmask_par(_executor(), [(grammar.matcher, row) for row, grammar in enumerate(grammars)], mask_RW)
    return np.unpackbits(mask_RW.view(np.uint8), axis=1, count=vocab_size, bitorder="little").view(np.bool_)


class GrammarCompiler:
    """Makes grammars of constraints for one model's tokenizer, and keeps those used last. Used on the event loop."""

    def __init__(self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None  # made when first needed: it takes time and memory
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._compiling: SingleFlight[Constraint, LLMatcher] = SingleFlight()
        # One thread, so that compiling never takes more than one core from the models.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    async def compile(self, constraint: Constraint) -> Grammar:
        """Return a grammar at its beginning.

        Raises:
            InvalidArgument: reason 'BAD_CONSTRAINT', with the field at fault.
            ResourceExhausted: reason 'QUEUE_FULL', with a retry delay.
        """
        if constraint not in self._kept:
            if constraint not in self._compiling and len(self._compiling) >= _MAX_COMPILING:
                message = f"{_MAX_COMPILING} constraints wait to be compiled already."
                raise ResourceExhausted(message, reason="QUEUE_FULL", retry_after_s=1)
            landed = await self._compiling.run(constraint, lambda: self._compile_aside(constraint))
            self._kept[constraint] = landed.result
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(constraint)
        return Grammar(self._kept[constraint].deep_copy())

    def close(self) -> None:
        """Let the thread end after what it compiles."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _compile_aside(self, constraint: Constraint) -> LLMatcher:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, constraint)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer(self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
        try:
            grammar = _grammar(constraint)
            # Of expressions, the compiler bounds time and memory itself; of patterns that must all hold, neither.
            if constraint.kind == "json_schema" and not _compiles_in_time(grammar):
                raise bad_constraint(constraint.kind, "takes too long to compile")
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError as error:
            raise bad_constraint(constraint.kind, f"is not valid: {_first_line(str(error))}") from None
        if matcher.is_error():
            raise bad_constraint(constraint.kind, f"cannot be followed: {_first_line(matcher.get_error())}")
        return matcher


def _grammar(constraint: Constraint) -> str:
    if constraint.kind == "json_schema":
        # Whitespace is allowed anywhere else, and a model that is unsure can go on with it for ever.
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides={"whitespace_flexible": False})
    return grammar_from("regex" if constraint.kind == "regex" else "choice", constraint.text)


def _compiles_in_time(grammar: str) -> bool:
    """Return whether compiling ends: nothing can stop it on a thread, so it is first tried in a process of its own."""
    command = [sys.executable, "-I", "-c", _TRY_TO_COMPILE]
    tried = subprocess.run(command, input=grammar.encode(), stderr=subprocess.DEVNULL, check=False)
    return tried.returncode >= 0


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:_MAX_PROBLEM_CHARACTERS].rstrip(".")
