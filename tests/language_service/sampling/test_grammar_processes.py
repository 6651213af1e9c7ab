"""The process of a constraint outlives its answers."""

import os
import signal
from collections.abc import AsyncIterator

import pytest
import structlog
from tokenizers import Tokenizer

from chassis.errors import Unavailable
from checkpoint.tokenizer import byte_tokenizer
from language_service.sampling.grammar import GrammarCompiler
from language_service.sampling.options import Constraint
from tests.language_service.asking import until
from tests.language_service.following import settle

TOKENIZER: Tokenizer = byte_tokenizer()
[A] = TOKENIZER.encode("a").ids
MANY = Constraint("regex", "a{20}")


@pytest.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER.to_str(), vocab_size=264, eos_token_ids=[2])
    yield compiler
    compiler.close()


async def test_an_answer_that_ends_while_its_token_waits_ends_no_other(compiler: GrammarCompiler) -> None:
    """A stop string ends an answer at any moment.

    Its process may be busy then.
    """
    ending, other = await compiler.compile(MANY), await compiler.compile(MANY)
    assert ending._worker is other._worker
    ending.accept(A)
    ending._queue()
    ending.close()  # sends the token and the end in one message
    for _ in range(3):
        other.accept(A)
        settle([other])
        assert other.error is None
    assert other.is_ready


async def test_a_fault_is_not_blamed_on_the_constraint(compiler: GrammarCompiler) -> None:
    grammar = await compiler.compile(MANY)
    await until(lambda: grammar._worker._process_id is not None)
    assert grammar._worker._process_id is not None
    with structlog.testing.capture_logs() as logs:
        os.kill(grammar._worker._process_id, signal.SIGKILL)
        await until(lambda: grammar._worker.has_ended)
    grammar.accept(A)
    settle([grammar])
    assert isinstance(grammar.error, Unavailable)
    assert grammar.error.reason == "GRAMMARS_FAILED"
    assert [line["event"] for line in logs] == ["constraint process ended"]
    assert (await compiler.compile(MANY)).error is None  # by a new process
