"""Options, refusals, caching and cancellation with vLLM as the engine."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from chassis.grpc_errors import from_rpc_error
from tandem.v1 import language_pb2, model_pb2, sampling_pb2
from tests.language_service import test_bad_prompts as bad
from tests.language_service.process import Request, ask, image, refusal, start, text
from tests.language_service.vllm.conftest import VllmRunning
from tests.language_service.vllm.models import STABLE
from tests.language_service.vllm.processes import engine_core

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

BYTES = 6  # id of the first byte of the tokenizer, after its special tokens
PROMPT = text(*range(7, 40))


def opening(**fields: Any) -> Request:
    """Return a first message with a salt or a priority."""
    sampling = sampling_pb2.SamplingOptions(ignore_eos=True, max_tokens=fields.pop("max_tokens", 4))
    return Request(start=language_pb2.GenerateStart(tag=STABLE, sampling=sampling, **fields))


def tokens(service: VllmRunning, **sampling: Any) -> list[int]:
    return ask(service, start(**{"max_tokens": 16, **sampling}), PROMPT, timeout=60)[0]


def test_the_model_names_its_engine(service: VllmRunning) -> None:
    info = service.stub.GetModel(model_pb2.GetModelRequest(tag=STABLE), timeout=10).model
    assert (info.backend, info.state) == ("vllm", model_pb2.MODEL_STATE_READY)
    assert info.language.context_length == 1024
    assert info.language.num_blocks * info.language.block_size >= 1024


def test_usage_and_timings(service: VllmRunning) -> None:
    _, finished = ask(service, start(max_tokens=6), text(7, 8), image(service.vision_digest, 9), text(9), timeout=60)
    assert finished.finish_reason == sampling_pb2.FINISH_REASON_LENGTH
    usage = finished.usage
    assert (usage.prompt_tokens, usage.visual_tokens, usage.completion_tokens) == (35, 32, 6)
    timings = finished.timings
    assert min(timings.prefill_ms, timings.first_token_ms, timings.decode_ms) > 0


def test_equal_seeds_give_equal_answers(service: VllmRunning) -> None:
    """Whatever else runs."""
    seeds = [1, 2, 3, 1, 2, 2**64 - 1]
    with ThreadPoolExecutor(len(seeds)) as callers:
        answers = list(callers.map(lambda seed: tokens(service, seed=seed, temperature=1), seeds))
    assert answers[:2] == answers[3:5]
    assert len({tuple(answer) for answer in answers}) == 4


def test_biases_and_stop_tokens(service: VllmRunning) -> None:
    assert tokens(service, logit_bias={50: 100}) == [50] * 16
    plain = tokens(service)
    found, finished = ask(service, start(max_tokens=16, stop_token_ids=[plain[3]]), PROMPT, timeout=60)
    assert found == plain[: plain.index(plain[3])]
    assert finished.finish_reason == sampling_pb2.FINISH_REASON_STOP
    assert finished.usage.completion_tokens == len(found)


def test_the_end_of_sequence_token_is_not_sent(service: VllmRunning) -> None:
    ends: dict[str, Any] = {"logit_bias": {2: 100.0}, "ignore_eos": False}
    found, finished = ask(service, start(max_tokens=9, **ends), PROMPT, timeout=60)
    assert (found, finished.finish_reason) == ([], sampling_pb2.FINISH_REASON_STOP)
    found, _ = ask(service, start(max_tokens=9, min_tokens=5, **ends), PROMPT, timeout=60)
    assert len(found) == 5
    assert 2 not in found


@pytest.mark.parametrize(
    ("constraint", "texts"),
    [
        ({"choices": sampling_pb2.Choices(texts=["yes", "no"])}, {"yes", "no"}),
        ({"regex": "ab?c"}, {"abc", "ac"}),
        ({"json_schema": '{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}'}, {'{"a":1}'}),
        ({"grammar": 'start: "x" "y"'}, {"xy"}),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_constraints_hold(service: VllmRunning, constraint: dict[str, Any], texts: set[str]) -> None:
    found, finished = ask(service, start(max_tokens=40, ignore_eos=False, **constraint), PROMPT, timeout=60)
    assert _text(found).replace(" ", "") in texts
    assert finished.finish_reason == sampling_pb2.FINISH_REASON_STOP


def _text(token_ids: list[int]) -> str:
    from checkpoint.tokenizer import byte_tokenizer

    decoded: str = byte_tokenizer().decode(token_ids)
    return decoded


@pytest.mark.parametrize(
    ("sampling", "field"), [({"temperature": 5}, "temperature"), ({"regex": "a+", "ignore_eos": True}, "ignore_eos")]
)
def test_what_vllm_cannot_do_is_refused_by_name(service: VllmRunning, sampling: dict[str, Any], field: str) -> None:
    error = refusal(service, [start(**sampling), PROMPT])
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "NOT_SUPPORTED")
    assert error.field == f"sampling.{field}"


def test_bad_prompts_never_reach_vllm(service: VllmRunning) -> None:
    """A wrong width alone would end vLLM's process for good."""
    core, alone, digest = engine_core(service.process.pid), tokens(service), service.vision_digest
    cases = bad.bad_streams() | bad.bad_starts() | bad.bad_sizes(digest) | bad.bad_images(digest)
    cases.pop("three images")  # this service takes eight
    for name, case in cases.items():
        error = refusal(service, case.requests)
        assert (error.code.name, error.reason, error.field) == (case.code, case.reason, case.field), name
    assert tokens(service) == alone
    assert engine_core(service.process.pid) == core


def test_prefixes_are_shared_under_one_salt_only(service: VllmRunning) -> None:
    long = text(*[(3 * token) % 250 for token in range(200)])

    def cached(salt: bytes) -> int:
        return ask(service, opening(cache_salt=salt), long, timeout=60)[1].usage.cached_prompt_tokens

    assert cached(b"one tenant") == 0
    assert cached(b"one tenant") >= 160
    assert cached(b"another") == 0
    assert cached(b"") == 0


def test_prefixes_with_images_are_shared_by_content(service: VllmRunning) -> None:
    def cached(seed: int) -> int:
        prompt = [text(*range(100, 140)), image(service.vision_digest, seed), text(*range(100, 140))]
        return ask(service, opening(), *prompt, timeout=60)[1].usage.cached_prompt_tokens

    assert cached(20) <= 32
    assert cached(20) >= 96
    assert cached(21) <= 32  # the block before the image


def test_a_cancelled_request_frees_its_place(service: VllmRunning) -> None:
    calls = [service.stub.Generate(iter([start(max_tokens=900), text(seed)]), timeout=60) for seed in range(8)]
    for call in calls[:4]:
        next(call)
    for call in calls:
        call.cancel()
    service.until_idle()
    assert len(tokens(service)) == 16


def test_a_deadline_ends_the_request(service: VllmRunning) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(service.stub.Generate(iter([start(max_tokens=900), text(5)]), timeout=0.3))
    assert from_rpc_error(caught.value).code.name == "DEADLINE_EXCEEDED"
    service.until_idle()


def test_a_full_queue_refuses_at_once(service: VllmRunning) -> None:
    """Sixteen are inside, which is the limit."""
    calls = [service.stub.Generate(_held_open(), timeout=60) for _ in range(16)]
    deadline = time.monotonic() + 30
    while (inside := service.metric("tandem_language_waiting") + service.metric("tandem_language_running")) < 16:
        assert time.monotonic() < deadline, inside
        time.sleep(0.02)
    error = refusal(service, [start(), PROMPT])
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert error.retry_after_s == 1
    for call in calls:
        call.cancel()
    service.until_idle()


def _held_open() -> Any:
    """Yield a prompt that never ends."""
    yield start()
    yield text(5)
    threading.Event().wait(30)


def test_a_larger_priority_runs_first(service: VllmRunning) -> None:
    running = [service.stub.Generate(iter([start(max_tokens=900), text(seed)]), timeout=60) for seed in range(4)]
    for call in running:
        next(call)
    order: list[int] = []

    def wait(priority: int) -> None:
        ask(service, opening(priority=priority, max_tokens=200), PROMPT, timeout=60)
        order.append(priority)

    with ThreadPoolExecutor(2) as callers:
        low = callers.submit(wait, -5)
        while service.metric("tandem_language_waiting") < 1:
            time.sleep(0.01)
        high = callers.submit(wait, 5)
        while service.metric("tandem_language_waiting") < 2:
            time.sleep(0.01)
        running[0].cancel()  # one place
        high.result()
        for call in running:
            call.cancel()
        low.result()
    assert order == [5, -5]
    service.until_idle()
