"""Every metric after a few requests with known steps."""

from prometheus_client import REGISTRY

from language_service.engine.generation import PagedGeneration
from tests.language_service.asking import ask, count, start, until
from tests.language_service.conftest import MakeEngine


def value(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"tandem_language_{name}", {"tag": "test-v1.0.0"})


def counts() -> dict[str, float]:
    """Return all counters."""
    steps = {name: value(name) or 0.0 for name in ("step_seconds_count", "step_seconds_sum", "step_tokens_sum")}
    tokens = {kind: count("tokens", kind=kind) for kind in ("prompt", "found", "answer")}
    return {**steps, **tokens, "failed": count("failed_steps"), "preempted": count("preemptions")}


async def test_steps_and_tokens_are_counted_by_kind(make_engine: MakeEngine) -> None:
    """Nine prompt tokens take two chunks, the answer three steps.

    The second time, eight tokens are cache hits.
    """
    engine = await make_engine(max_running=2, max_step_tokens=6)
    for expected in (
        {"step_seconds_count": 5, "step_tokens_sum": 12, "prompt": 9, "found": 0, "answer": 3},
        {"step_seconds_count": 4, "step_tokens_sum": 4, "prompt": 1, "found": 8, "answer": 3},
    ):
        before = counts()
        with engine._condition:  # so that the first step sees the whole prompt
            generation = start(engine, ignore_eos=True)
            generation.add_text(list(range(5, 14)))
            generation.end_prompt(4)
        assert len([event async for event in generation]) == 6
        more = {name: after - before[name] for name, after in counts().items()}
        assert more.pop("step_seconds_sum") > 0
        assert more == {**expected, "failed": 0, "preempted": 0}


async def test_gauges_show_the_current_load(make_engine: MakeEngine) -> None:
    engine = await make_engine(num_blocks=20, max_running=1)
    await ask(engine, [[5, 6, 7, 8, 9]], max_tokens=1)
    running, waiting = start(engine), start(engine)
    assert isinstance(running, PagedGeneration)
    running.add_text([20] * 6)
    waiting.add_text([1])
    await until(lambda: running.sequence.num_computed > 0)  # its first block is full, so it stays evictable
    gauges = ("running", "waiting", "kv_blocks_used", "kv_blocks_kept", "kv_blocks")
    assert [value(name) for name in gauges] == [1, 1, 2, 1, 20]
    for generation in (running, waiting):
        generation.cancel()
    assert [value(name) for name in gauges] == [0, 0, 0, 2, 20]
    await engine.close()
    assert [value(name) for name in gauges] == [None] * 5
