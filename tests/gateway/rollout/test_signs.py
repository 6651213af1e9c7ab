"""Signs of a sick canary, counted by a gateway with scripted stages."""

import asyncio

from tokenizers import Tokenizer

from gateway.answer import Signs
from gateway.rollout.recent_answers import RecentAnswers
from gateway.rollout.traffic import SIGNS, SURPRISE
from tandem.v1 import rollout_pb2, sampling_pb2
from tests.gateway.rollout.live_gateway import CANARY, STABLE, LiveGateway
from tests.gateway.rollout.test_rollouts import NEARLY_ALL, RUNNING, wait_for_counts


def answer(question: int, text: int) -> Signs:
    return Signs(question=bytes([question]), text=bytes([text]))


def test_one_text_for_another_question_is_repeated() -> None:
    recent = RecentAnswers()
    assert not recent.add("canary", answer(1, 9))
    assert not recent.add("canary", answer(1, 9))  # the same question again
    assert recent.add("canary", answer(2, 9))
    assert not recent.add("stable", answer(3, 9))  # another release
    assert not recent.add("canary", answer(4, 8))
    assert not recent.add("canary", Signs(question=b"5"))
    recent.clear()
    assert not recent.add("canary", answer(6, 9))


def test_only_the_last_answers_are_compared() -> None:
    """A release with more traffic must not repeat more often."""
    recent = RecentAnswers()
    recent.add("canary", answer(0, 0))
    for number in range(1, 65):
        assert not recent.add("canary", answer(number, number))
    assert not recent.add("canary", answer(99, 0))


async def test_signs_are_counted_by_release(live: LiveGateway, tokenizer: Tokenizer) -> None:
    await live.set(NEARLY_ALL, 100)
    await live.wait_for_phase(RUNNING)
    live.language.answers[CANARY] = [ord("a"), ord("b")] * 30
    await asyncio.gather(*(live.ask(f"user-{number}") for number in range(3)))
    live.language.answers[CANARY] = tokenizer.encode("这是一个红色的真皮包，在左边。", add_special_tokens=False).ids
    await live.ask("user-4")
    await wait_for_counts(live, requests=4, looped=3, wrong_script=1, cut_off=0, same_text=0, filtered=0)
    assert SIGNS.labels(CANARY, "looped")._value.get() >= 3


async def test_a_looping_canary_is_rolled_back(live: LiveGateway) -> None:
    await live.set(50, 100)
    await live.operator.Rollback(rollout_pb2.RolloutsRollbackRequest())
    before = (await live.get()).plan
    before.guard.max_repetition_increase = 0.02
    await live.operator.Set(rollout_pb2.RolloutsSetRequest(plan=before))
    await live.wait_for_phase(RUNNING)
    live.language.answers[CANARY] = [ord("a")] * 40
    await asyncio.gather(*(live.ask(f"user-{number}") for number in range(120)))
    rollout = await live.wait_for_phase(rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK)
    assert "The canary's repetition is beyond its bound" in rollout.changes[-1].reason


async def test_length_and_log_probability_are_measured_by_release(live: LiveGateway) -> None:
    """The client sees nothing of it."""
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    before = {tag: SURPRISE.labels(tag)._sum.get() for tag in (STABLE, CANARY)}
    live.language.logprobs = {STABLE: -0.2, CANARY: -1.5}
    live.language.answers[CANARY] = [ord("a"), ord("b")] * 30
    answers = await asyncio.gather(*(live.ask(f"user-{number}") for number in range(120)))
    assert not [one for answer in answers for one in answer.logprobs]
    rollout = await live.wait_until(lambda rollout: rollout.stable.requests + rollout.canary.requests == 120)
    assert abs(rollout.canary.mean_tokens - 60) < 8
    assert rollout.stable.mean_tokens < 12
    assert abs(rollout.stable.mean_logprob + 0.2) < 0.03
    assert abs(rollout.canary.mean_logprob + 1.5) < 0.1
    surprise = {tag: SURPRISE.labels(tag)._sum.get() - before[tag] for tag in (STABLE, CANARY)}
    assert surprise[CANARY] > surprise[STABLE] > 0
    measured = sum(start.sampling.HasField("num_logprobs") for start in live.language.starts)
    assert 10 < measured < 60  # one in four


async def test_a_client_gets_the_log_probabilities_it_asked_for(live: LiveGateway) -> None:
    await live.set(50, 100)
    await live.wait_for_phase(RUNNING)
    for number in range(8):
        answer = await live.ask(f"user-{number}", sampling=sampling_pb2.SamplingOptions(num_logprobs=3))
        assert answer.logprobs
    assert {start.sampling.num_logprobs for start in live.language.starts} == {3}
