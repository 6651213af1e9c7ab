"""Choose the engine of a language half.

No other module opens an engine by its name.
"""

from importlib.util import find_spec
from typing import Literal, Protocol

from chassis.errors import FailedPrecondition
from checkpoint.weights import LoadedHalf
from language_service.engine.interface import Engine, EngineConfig

EngineName = Literal["tandem", "vllm"]


class Follower(Protocol):
    """Computes for an engine on another machine, its leader."""

    async def close(self) -> None:
        """Leave, and free all memory."""
        ...


async def open_engine(
    name: EngineName, half: LoadedHalf, config: EngineConfig, *, tag: str, tokenizer_json: str
) -> Engine:
    """Return a running engine of that name.

    Args:
        name: the setting `--engine`.
        half: the language half. The engine takes over its tensors, so `half.tensors` may be empty afterwards.
        config: settings of the engine.
        tag: the model's tag, for metrics and logs.
        tokenizer_json: content of `tokenizer.json`.

    Raises:
        FailedPrecondition: reason 'BAD_CHECKPOINT', the weights give numbers that are not finite.
        FailedPrecondition: reason 'NO_MEMORY', the KV cache has no room for one block.
        FailedPrecondition: reason 'NOT_INSTALLED', 'WRONG_DEVICE', 'BAD_ENGINE_ARGS', 'NOT_SUPPORTED' or
            'ENGINE_NOT_STARTED', vLLM cannot run here, or not this model.
    """
    # Imported here, so that a process loads the libraries of its own engine only.
    if name == "tandem":
        from language_service.engine.own import open_tandem_engine

        return await open_tandem_engine(half, config, tag=tag)
    if name == "vllm":
        _check_vllm_installed()
        from language_service.engine.vllm_opening import open_vllm_engine

        return await open_vllm_engine(half, tokenizer_json, config, tag=tag)
    raise ValueError(f"there is no engine {name!r}")


async def join_engine(half: LoadedHalf, config: EngineConfig, *, tag: str, tokenizer_json: str) -> Follower:
    """Join another machine's vLLM with a share of its model.

    Returns when all machines have loaded their shares. When the leader's vLLM ends, this process ends, too.

    Args:
        half: the language half. Its tensors may be empty afterwards.
        config: the leader's, with another 'node_rank' in `engine_args`.
        tag: the model's tag, for logs.
        tokenizer_json: content of `tokenizer.json`.

    Raises:
        FailedPrecondition: reason 'NOT_INSTALLED', 'WRONG_DEVICE', 'BAD_ENGINE_ARGS', 'NOT_SUPPORTED' or
            'ENGINE_NOT_STARTED', vLLM cannot run here, or not this model.
    """
    _check_vllm_installed()
    from language_service.engine.vllm_opening import open_vllm_follower

    return await open_vllm_follower(half, tokenizer_json, config, tag=tag)


def _check_vllm_installed() -> None:
    if find_spec("vllm") is None:
        raise FailedPrecondition(
            "This environment has no vLLM: see docs/scaling.md, or use --engine tandem.", reason="NOT_INSTALLED"
        )
