"""Stop the processes of costly constraints while a forward pass is computed."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from tokenizers import Tokenizer

from chassis.process_time import is_stopped
from checkpoint.tokenizer import byte_tokenizer
from language_service.sampling.costly_workers import costly_workers
from language_service.sampling.grammar import GrammarCompiler, advance
from language_service.sampling.grammar_worker import WorkerLimits
from language_service.sampling.options import Constraint
from tests.language_service.asking import until
from tests.language_service.following import settle

TOKENIZER: Tokenizer = byte_tokenizer()
A, X, NINE = (TOKENIZER.encode(letter).ids[0] for letter in "ax9")
# The token 'a' after 'x' takes 60 to 300 ms.
DEAR_LATER = Constraint("regex", "x(((a{1000}){1000}q{1000})|b{5})")


@pytest.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    limits = WorkerLimits(token_s=60.0, answer_s=60.0)
    compiler = GrammarCompiler(TOKENIZER.to_str(), vocab_size=264, eos_token_ids=[2], limits=limits)
    yield compiler
    compiler.close()


def workers_of(compiler: GrammarCompiler) -> list[int]:
    """Return the process ids of the workers that have started."""
    assert compiler._pool is not None
    return [one._process_id for one in compiler._pool._workers.values() if one._process_id is not None]


async def test_a_job_that_becomes_costly_is_stopped_while_a_forward_pass_is_computed(
    compiler: GrammarCompiler,
) -> None:
    """By the kernel.

    The library computes with the interpreter's lock, so nothing in the process can do that.
    """
    grammar = await compiler.compile(DEAR_LATER)
    worker = grammar._worker
    grammar.accept(X)
    settle([grammar])
    assert worker.is_quick
    grammar.accept(A)
    with costly_workers.stopped():  # it is quick so far
        advance([grammar], timeout_s=0)
        await until(lambda: is_stopped(worker._process_id or 0))
        with costly_workers.stopped():  # of another engine
            pass
        assert is_stopped(worker._process_id or 0)
        assert not grammar._accepted.done()
    settle([grammar])
    assert grammar._mask.done()
    assert not worker.is_quick


async def test_a_new_worker_starts_between_two_forward_passes(compiler: GrammarCompiler) -> None:
    await compiler.compile(Constraint("regex", "a"))  # starts the program
    with costly_workers.stopped():
        compiling = asyncio.create_task(compiler.compile(Constraint("regex", "b")))
        await asyncio.sleep(0.1)
        assert len(workers_of(compiler)) == 1
    await asyncio.wait_for(compiling, 10)
    assert len(workers_of(compiler)) == 2


async def test_a_new_worker_is_stopped_while_a_forward_pass_is_computed(compiler: GrammarCompiler) -> None:
    await compiler.compile(Constraint("regex", "a"))
    compiling = asyncio.create_task(compiler.compile(Constraint("regex", "(a{1000}){1000}q{1000}")))
    await until(lambda: len(workers_of(compiler)) == 2)
    with costly_workers.stopped():
        await until(lambda: is_stopped(workers_of(compiler)[1]))
        await asyncio.sleep(0.1)
        assert is_stopped(workers_of(compiler)[1])
    compiling.cancel()


async def test_a_worker_that_never_started_ends_like_any_other(compiler: GrammarCompiler) -> None:
    await compiler.compile(Constraint("regex", "a"))
    assert compiler._pool is not None
    num_files = len(os.listdir("/proc/self/fd"))
    with costly_workers.stopped():
        compiling = asyncio.create_task(compiler.compile(Constraint("regex", "b")))
        await until(lambda: compiler._pool is not None and len(compiler._pool._workers) == 2)
        compiling.cancel()
        await until(lambda: compiler._pool is not None and len(compiler._pool._workers) == 1)
    assert len(os.listdir("/proc/self/fd")) == num_files


async def test_quick_workers_are_not_stopped(compiler: GrammarCompiler) -> None:
    grammar = await compiler.compile(Constraint("regex", "9{200}"))
    grammar.accept(NINE)
    settle([grammar])
    with costly_workers.stopped():
        grammar.accept(NINE)
        advance([grammar], timeout_s=0)
        await until(lambda: grammar.is_ready)
        assert not is_stopped(grammar._worker._process_id or 0)
    assert grammar.error is None
