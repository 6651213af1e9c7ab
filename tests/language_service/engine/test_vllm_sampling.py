import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chassis.errors import FailedPrecondition, InvalidArgument
from language_service.engine.interface import EngineConfig
from language_service.engine.vllm_arguments import engine_arguments
from language_service.engine.vllm_sampling import check_options, read_logprobs, sampling_arguments
from language_service.sampling import SamplingOptions
from language_service.sampling.options import Constraint
from language_service.scheduling import SchedulerConfig
from tests.language_service.small import CPU


def arguments(**options: Any) -> dict[str, Any]:
    return sampling_arguments(SamplingOptions(**options), max_tokens=9, ends={7, 2}, vocab_size=100)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": 0.001}, "temperature"),
        ({"ignore_eos": True, "constraint": Constraint("regex", "a+")}, "ignore_eos"),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_options(SamplingOptions(**options))
    assert (caught.value.reason, caught.value.field) == ("NOT_SUPPORTED", f"sampling.{field}")


@pytest.mark.parametrize("temperature", [0, 0.01, 2])
def test_the_limits_of_the_temperature_are_possible(temperature: float) -> None:
    check_options(SamplingOptions(temperature=temperature))


def test_every_option_reaches_vllm() -> None:
    given = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {5: 1.5},
        "seed": 2**63,
        "min_tokens": 2,
        "ignore_eos": True,
    }
    made = arguments(**given, num_logprobs=0)
    assert {name: made[name] for name in given} == given
    assert (made["max_tokens"], made["stop_token_ids"], made["logprobs"]) == (9, [2, 7], 0)


def test_a_top_k_beyond_the_vocabulary_keeps_all() -> None:
    """There it is a signed number of 32 bits."""
    assert arguments(top_k=2**32 - 1)["top_k"] == 100


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (Constraint("json_schema", '{"type": "object"}'), {"json": '{"type": "object"}'}),
        (Constraint("regex", "a+"), {"regex": "a+"}),
        (Constraint("choices", json.dumps(["yes", "no"])), {"choice": ["yes", "no"]}),
        (Constraint("grammar", 'start: "a"'), {"grammar": 'start: "a"'}),
    ],
)
def test_constraints_become_structured_outputs(constraint: Constraint, expected: dict[str, Any]) -> None:
    assert arguments(constraint=constraint)["structured_outputs"] == expected


def test_logprobs_are_the_chosen_one_and_the_most_likely() -> None:
    ranked = [(9, -3.0, 4), (1, -0.5, 1), (3, -2.0, 3), (2, -1.0, 2)]
    found = read_logprobs(9, ranked, 2)
    assert (found.chosen, found.top) == (-3.0, [(1, -0.5), (2, -1.0)])
    assert read_logprobs(1, ranked[1:2], 0).top == []


def config(**engine_args: Any) -> EngineConfig:
    scheduling = SchedulerConfig(block_size=16, max_running=8, max_waiting=4, max_step_tokens=64)
    return EngineConfig(
        dtype=torch.float32, device=CPU, scheduling=scheduling, cache_bytes=1 << 20, engine_args=engine_args
    )


def test_settings_and_further_arguments_reach_vllm() -> None:
    made = engine_arguments(Path("folder"), config(tensor_parallel_size=2, max_model_len=128), has_grids=False)
    expected = {
        "model": "folder",
        "dtype": "float32",
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 1 << 20,
        "enable_prefix_caching": True,
        "enable_prompt_embeds": True,
        "tensor_parallel_size": 2,
        "max_model_len": 128,
        "trust_remote_code": False,
    }
    assert {name: made.get(name) for name in expected} == expected
    assert "enable_mm_embeds" not in made


def test_models_with_grids_get_embeddings_of_images() -> None:
    made = engine_arguments(Path("folder"), config(), has_grids=True)
    assert made["enable_mm_embeds"]
    assert made["limit_mm_per_prompt"] == {"video": 0}
    assert "enable_prompt_embeds" not in made


@pytest.mark.parametrize(
    "name", ["model", "dtype", "trust_remote_code", "enable_log_requests", "enable_prompt_embeds", "served_model_name"]
)
def test_arguments_that_tandem_sets_are_refused(name: str) -> None:
    with pytest.raises(FailedPrecondition, match=name) as caught:
        engine_arguments(Path("folder"), config(**{name: True}), has_grids=True)
    assert caught.value.reason == "BAD_ENGINE_ARGS"
