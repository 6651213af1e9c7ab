"""Make the arguments that vLLM starts with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chassis.errors import FailedPrecondition
from language_service.engine.interface import EngineConfig

# Set by Tandem's own settings, or fixed because answers or safety depend on them.
_BY_SETTING = {
    "model": "--tags",
    "dtype": "--precision",
    "max_num_seqs": "--max-running",
    "max_num_queued_reqs": "--max-waiting",
    "enable_prefix_caching": "--prefix-cache",
    "kv_cache_memory_bytes": "--kv-cache-bytes",
}
_FIXED: dict[str, Any] = {
    "served_model_name": None,
    "tokenizer": None,
    "skip_tokenizer_init": False,  # constraints need it
    "trust_remote_code": False,
    "generation_config": "vllm",  # the options come from requests alone
    "scheduling_policy": "priority",
    "max_logprobs": 20,
    "logprobs_mode": "raw_logprobs",
    "disable_log_stats": True,  # ours come instead
    "enable_log_requests": False,  # prompts are nobody's business
    # A cache of images by id would hold gigabytes beside ours.
    "mm_processor_cache_gb": 0,
    "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
}


def engine_arguments(folder: Path, config: EngineConfig, *, has_grids: bool) -> dict[str, Any]:
    """Return the arguments of vLLM's `AsyncEngineArgs`.

    Args:
        folder: from `write_vllm_folder`.
        config: of the engine. Its `engine_args` are added.
        has_grids: whether images have grids, as for Qwen3-VL.

    Raises:
        FailedPrecondition: reason 'BAD_ENGINE_ARGS', `engine_args` has an argument that is not the operator's to set.
    """
    own = _own_arguments(folder, config, has_grids=has_grids)
    _check_free(config.engine_args, own)
    # As long as the model's context and the KV cache allow.
    return {"max_model_len": -1, **config.engine_args, **own}


def spans_machines(config: EngineConfig) -> bool:
    """Return whether one vLLM runs on several machines."""
    num_machines: int = config.engine_args.get("nnodes", 1)
    return num_machines > 1


def _own_arguments(folder: Path, config: EngineConfig, *, has_grids: bool) -> dict[str, Any]:
    images: dict[str, Any] = {"enable_prompt_embeds": True}
    if has_grids:
        # The stub of a tower must not run, so no dummy image may measure its memory.
        images = {"enable_mm_embeds": True, "skip_mm_profiling": True, "limit_mm_per_prompt": {"video": 0}}
    return {
        **{name: value for name, value in _FIXED.items() if value is not None},
        **images,
        "model": str(folder),
        "dtype": str(config.dtype).removeprefix("torch."),
        "max_num_seqs": config.scheduling.max_running,
        "enable_prefix_caching": config.scheduling.reuse_prefixes,
        **({} if config.cache_bytes is None else {"kv_cache_memory_bytes": config.cache_bytes}),
    }


def _check_free(engine_args: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    for name in engine_args:
        if name in _BY_SETTING:
            raise _bad(f"leave out {name} and use {_BY_SETTING[name]} instead")
        if name in own or name in _FIXED or name in ("enable_prompt_embeds", "enable_mm_embeds"):
            raise _bad(f"leave out {name}, which Tandem sets itself")


def _bad(problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"--engine-args cannot be used: {problem}.", reason="BAD_ENGINE_ARGS")
