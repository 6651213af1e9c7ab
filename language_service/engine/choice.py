"""Choose the engine of a language half.

No other module opens an engine by its name.
"""

from typing import Literal

from checkpoint.weights import LoadedHalf
from language_service.engine.interface import Engine, EngineConfig

EngineName = Literal["tandem"]


async def open_engine(name: EngineName, half: LoadedHalf, config: EngineConfig, *, tag: str) -> Engine:
    """Return a running engine of that name.

    Args:
        name: the setting `--engine`.
        half: the language half. The engine takes over its tensors, so `half.tensors` may be empty afterwards.
        config: settings of the engine.
        tag: the model's tag, for metrics and logs.

    Raises:
        FailedPrecondition: reason 'BAD_CHECKPOINT', the weights give numbers that are not finite.
        FailedPrecondition: reason 'NO_MEMORY', the KV cache has no room for one block.
    """
    # Imported here, so that a process loads the libraries of its own engine only.
    if name == "tandem":
        from language_service.engine.own import open_tandem_engine

        return await open_tandem_engine(half, config, tag=tag)
    raise ValueError(f"there is no engine {name!r}")
