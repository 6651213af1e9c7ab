"""Costly constraints fail alone, and leave nothing behind."""

import asyncio
import hashlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from chassis.errors import InvalidArgument, ResourceExhausted, Unavailable
from checkpoint.tokenizer import byte_tokenizer
from language_service.engine.interface import Finished, Generation, Tokens
from language_service.engine.paged import PagedEngine
from language_service.sampling import grammar as grammar_module
from language_service.sampling.grammar import Grammar, GrammarCompiler, advance
from language_service.sampling.grammar_worker import WorkerLimits
from language_service.sampling.options import Constraint, SamplingOptions
from tests.language_service.asking import read, until
from tests.language_service.conftest import MakeEngine
from tests.language_service.following import settle
from tests.language_service.small import CONFIG, make_decoder

VOCAB, EOS = 264, 2
TOKENIZER: Tokenizer = byte_tokenizer()
MODEL = make_decoder(CONFIG.model_copy(update={"vocab_size": VOCAB}))
A, X, NINE = (TOKENIZER.encode(letter).ids[0] for letter in "ax9")

# The first mask takes two seconds and 160 MiB.
DEAR = "(a{1000}){1000}q{1000}"
# The mask after 'xa' takes 60 to 300 ms.
DEAR_LATER = Constraint("regex", f"x(({DEAR})|b{{5}})")

Compile = Callable[[str], Awaitable[Grammar]]
MakeCompiler = Callable[..., GrammarCompiler]


@pytest.fixture
async def make_compiler() -> AsyncIterator[MakeCompiler]:
    compilers = []

    def make(**limits: float) -> GrammarCompiler:
        limits_of_worker = WorkerLimits(**limits)  # type: ignore[arg-type]
        compilers.append(
            GrammarCompiler(TOKENIZER.to_str(), vocab_size=VOCAB, eos_token_ids=[EOS], limits=limits_of_worker)
        )
        return compilers[-1]

    yield make
    for compiler in compilers:
        process_ids = processes(compiler)
        compiler.close()
        await until(lambda ids=process_ids: not any(map(runs, ids)))  # type: ignore[misc]


def processes(compiler: GrammarCompiler) -> list[int]:
    """Return the ids of the processes of a compiler."""
    if compiler._pool is None:
        return []
    program = compiler._pool._program.pid
    children = Path(f"/proc/{program}/task/{program}/children")
    return [program, *map(int, children.read_text().split())] if children.exists() else []


def runs(process_id: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False


def start(engine: PagedEngine, grammar: Grammar | None, *, max_tokens: int) -> Generation:
    options = (
        SamplingOptions(logit_bias={X: 90.0, A: 90.0, NINE: 90.0})
        if grammar is not None
        else SamplingOptions(ignore_eos=True)
    )
    generation = engine.open(options, salt=b"", priority=0, grammar=grammar)
    generation.add_text([5, 6, 7])
    generation.end_prompt(max_tokens)
    return generation


async def test_a_constraint_with_a_dear_first_mask_is_refused(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(memory_bytes=2**30)  # a fast processor reaches the usual bound of memory first
    with pytest.raises(InvalidArgument) as caught:
        await compiler.compile(Constraint("regex", DEAR))
    assert caught.value.message == (
        "sampling.regex takes more than 0.25 s of processor time for a token, so make it simpler."
    )
    assert (caught.value.reason, caught.value.field) == ("BAD_CONSTRAINT", "sampling.regex")


async def test_a_constraint_that_becomes_dear_fails_alone(make_engine: MakeEngine, make_compiler: MakeCompiler) -> None:
    """Other answers go on, those under other constraints too."""
    engine, compiler = await make_engine(model=MODEL), make_compiler(token_s=0.03)
    dear = await compiler.compile(DEAR_LATER)
    cheap = await compiler.compile(Constraint("regex", "9{200}"))
    failing = start(engine, dear, max_tokens=50)
    others = [start(engine, None, max_tokens=200), start(engine, cheap, max_tokens=200)]

    with pytest.raises(InvalidArgument) as caught:
        await read(failing)
    assert caught.value.reason == "CONSTRAINT_FAILED"
    assert "it takes more than 0.03 s of processor time for a token" in caught.value.message
    for other in others:
        assert len((await read(other))[0]) == 200


async def test_an_answer_under_a_slow_constraint_is_right_and_delays_no_other(
    make_engine: MakeEngine, make_compiler: MakeCompiler
) -> None:
    """Its masks take longer than a step, so it pauses."""
    engine, compiler = await make_engine(model=MODEL), make_compiler(token_s=5.0)
    slow = await compiler.compile(Constraint("regex", "x{3}(a{200}){200}"))
    generation, other = start(engine, slow, max_tokens=12), start(engine, None, max_tokens=240)
    arrived: list[int] = []

    async def note(number: int, generation: Generation) -> list[int]:
        tokens: list[int] = []
        async for event in generation:
            if isinstance(event, Tokens):
                arrived.extend([number] * len(event.token_ids))
                tokens += event.token_ids
        return tokens

    answer, _ = await asyncio.gather(note(0, generation), note(1, other))
    assert TOKENIZER.decode(answer) == "xxx" + "a" * 9
    places = [place for place, number in enumerate(arrived) if number == 0]
    gaps = [later - earlier for earlier, later in zip(places, [*places[1:], len(arrived)], strict=True)]
    assert max(gaps) > 3  # the other answer went on while it paused


async def test_no_step_waits_for_a_costly_constraint(make_compiler: MakeCompiler) -> None:
    grammar = await make_compiler(token_s=60.0, answer_s=60.0).compile(Constraint("regex", "(a{200}){200}"))
    while not grammar._worker._is_dear:
        grammar.accept(A)
        settle([grammar])
    process_id = grammar._worker._process_id
    assert process_id is not None
    os.kill(process_id, signal.SIGSTOP)
    grammar.accept(A)
    advance([grammar], timeout_s=1e9)
    assert not grammar.may_step
    os.kill(process_id, signal.SIGCONT)
    settle([grammar])
    assert grammar.may_step


async def test_a_constraint_that_takes_too_much_memory_is_refused(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(token_s=20.0, memory_bytes=24 * 2**20)
    with pytest.raises(InvalidArgument, match="takes more than 24 MiB of memory"):
        await compiler.compile(Constraint("regex", DEAR))


async def test_an_answer_has_a_limited_time_for_all_its_tokens(make_compiler: MakeCompiler) -> None:
    grammar = await make_compiler(answer_s=0.03).compile(Constraint("regex", "(a{200}){200}"))
    for _ in range(100):  # each takes some milliseconds
        grammar.accept(A)
        settle([grammar])
        if grammar.error:
            break
    assert isinstance(grammar.error, InvalidArgument)
    assert "processor time" in grammar.error.message


async def test_the_memory_of_all_constraints_is_bounded(
    make_compiler: MakeCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ones that no answer uses are stopped first."""
    monkeypatch.setattr(grammar_module, "_MAX_BYTES", 100 * 2**20)
    compiler = make_compiler(token_s=10.0)
    in_use = await compiler.compile(Constraint("regex", "x{3}(a{150}){150}"))
    for number in range(12):  # of about 20 MiB each
        grammar = await compiler.compile(Constraint("regex", f"(a{{250}}){{250}}{number}"))
        grammar.close()
    await until(lambda: sum(worker.num_bytes for worker in compiler._workers.values()) <= 100 * 2**20)
    assert sum(worker.has_ended for worker in compiler._workers.values()) > 3
    in_use.accept(X)
    settle([in_use])
    assert in_use.error is None


async def test_idle_constraints_are_bounded_in_number(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler()
    for number in range(50):
        (await compiler.compile(Constraint("regex", f"a{number}"))).close()
    await until(lambda: len(processes(compiler)) <= 1 + grammar_module._MAX_IDLE + 1)


async def test_many_costly_constraints_do_not_hold_up_a_cheap_one(make_compiler: MakeCompiler) -> None:
    """They compile apart, and only few at a time."""
    compiler = make_compiler(token_s=3.0, compile_s=3.0)
    costly = [asyncio.create_task(compiler.compile(Constraint("regex", f"{DEAR}{number}"))) for number in range(12)]
    await asyncio.sleep(0.1)
    await asyncio.wait_for(compiler.compile(Constraint("regex", "[0-9]{4}")), 10)
    assert not all(one.done() for one in costly)
    outcomes = await asyncio.gather(*costly, return_exceptions=True)
    assert any(isinstance(outcome, ResourceExhausted) for outcome in outcomes)


async def test_many_cheap_constraints_are_not_refused_while_the_service_computes(make_compiler: MakeCompiler) -> None:
    compiler, is_over = make_compiler(), threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            hashlib.sha256(bytes(2**22))  # without the interpreter's lock

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        constraints = [Constraint("regex", f"a{number}") for number in range(30)]
        await asyncio.wait_for(asyncio.gather(*map(compiler.compile, constraints)), 60)
    finally:
        is_over.set()
        thread.join()


async def test_a_cancelled_compilation_leaves_no_process(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler(token_s=60.0, compile_s=60.0)
    compiling = asyncio.create_task(compiler.compile(Constraint("regex", DEAR)))
    await until(lambda: len(processes(compiler)) == 2)
    compiling.cancel()
    await until(lambda: len(processes(compiler)) == 1)


async def test_answers_fail_with_the_program_and_the_next_starts_another(
    make_engine: MakeEngine, make_compiler: MakeCompiler
) -> None:
    engine, compiler = await make_engine(model=MODEL), make_compiler()
    constraint = Constraint("regex", "9{200}")
    failing = start(engine, await compiler.compile(constraint), max_tokens=200)
    pool = compiler._pool
    assert pool is not None
    worker_id = next(iter(pool._workers.values()))._process_id
    assert worker_id is not None
    os.kill(worker_id, signal.SIGSTOP)
    os.kill(pool._program.pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as caught:
        await read(failing)
    assert (caught.value.reason, caught.value.retry_after_s) == ("GRAMMARS_FAILED", 1)
    await until(lambda: not pool.is_running)
    await until(lambda: not Path(f"/proc/{worker_id}").exists())  # also if it waited for its turn
    again = start(engine, await compiler.compile(constraint), max_tokens=3)
    tokens, finished = await read(again)
    assert isinstance(finished, Finished)
    assert tokens == [NINE] * 3


async def test_processes_that_end_together_leave_the_program_running(make_compiler: MakeCompiler) -> None:
    compiler = make_compiler()
    for attempt in range(5):
        constraints = [Constraint("regex", f"{attempt}{number}") for number in range(30)]
        grammars = await asyncio.gather(*(compiler.compile(constraint) for constraint in constraints))
        workers = list(compiler._workers.values())
        for worker in workers:
            worker.kill()
        await until(lambda workers=workers: all(worker.has_ended for worker in workers))  # type: ignore[misc]
        for grammar in grammars:
            grammar.close()
        assert compiler._pool is not None
        assert compiler._pool.is_running


async def test_no_answer_begins_with_a_process_that_is_about_to_end(make_compiler: MakeCompiler) -> None:
    """Costly work for nobody is stopped."""
    compiler = make_compiler(token_s=60.0, answer_s=60.0)
    constraint = Constraint("regex", "(a{200}){200}")
    first = await compiler.compile(constraint)
    first.accept(A)
    await asyncio.to_thread(settle, [first])
    first.accept(A)
    advance([first], timeout_s=0)
    await until(lambda: first._worker.is_costly or not first._worker._expected)
    first.close()
    second = await compiler.compile(constraint)
    settle([second])
    second.accept(A)
    settle([second])
    assert second.error is None
