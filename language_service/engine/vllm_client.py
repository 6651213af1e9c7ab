"""Start vLLM and talk to it. The only module that imports vLLM.

vLLM computes in child processes. Their death shows in `is_alive`, and fails all requests with `EngineDied`.
"""

import math
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from language_service.engine.vllm_orphans import OrphanWatcher

# Before the import: vLLM reads these once.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork would copy the threads' locks of gRPC
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_COMPUTE_NANS_IN_LOGITS", "1")  # shows in the metrics of a request
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil  # type: ignore[import-untyped]
from vllm import AsyncEngineArgs, SamplingParams  # type: ignore[import-not-found]
from vllm.exceptions import VLLMClientError  # type: ignore[import-not-found]
from vllm.platforms import current_platform  # type: ignore[import-not-found]
from vllm.sampling_params import (  # type: ignore[import-not-found]
    RequestOutputKind,
    StructuredOutputsParams,
)
from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]
from vllm.v1.engine.exceptions import EngineDeadError  # type: ignore[import-not-found]
from vllm.v1.executor.multiproc_executor import MultiprocExecutor  # type: ignore[import-not-found]
from vllm.v1.metrics.loggers import StatLoggerBase  # type: ignore[import-not-found]

# Where several machines meet, unless the arguments say otherwise.
MASTER_ADDRESS: str = AsyncEngineArgs.master_addr
MASTER_PORT: int = AsyncEngineArgs.master_port


class EngineDied(Exception):
    """A process of vLLM has ended."""


class RequestRefused(Exception):
    """vLLM refuses a request."""


@dataclass(frozen=True, slots=True)
class Output:
    """The next tokens of an answer."""

    token_ids: list[int]
    logprobs: list[list[tuple[int, float, int]]]  # of each token: id, log-probability and rank of several
    finish_reason: str | None
    num_cached_prompt: int
    queue_s: float  # from its arrival at vLLM to its first step
    prefill_s: float
    is_finite: bool


@dataclass(slots=True)
class Load:
    """What vLLM last said about its load."""

    num_running: int = 0
    num_waiting: int = 0
    cache_usage: float = 0.0  # share of the blocks in use


@dataclass(slots=True)
class _Loads:
    """The load of each engine, as vLLM reports it."""

    by_engine: dict[int, Load] = field(default_factory=dict)

    def logger(self, _config: object, engine_index: int = 0) -> Any:
        """Make the object that vLLM reports to."""
        loads = self.by_engine

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None: ...

            def record(
                self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
            ) -> None:
                if scheduler_stats is not None:
                    loads[engine_index] = Load(
                        scheduler_stats.num_running_reqs,
                        scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                        scheduler_stats.kv_cache_usage,
                    )

            def log_engine_initialized(self) -> None: ...

        return Logger()


class VllmClient:
    """One running vLLM. Its requests belong to one event loop."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Start the processes and wait until they are ready.

        It takes seconds to minutes, so call it on a thread.

        Args:
            arguments: of vLLM's `AsyncEngineArgs`.

        Raises:
            Exception: vLLM did not start.
        """
        self._loads = _Loads()
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self._loads.logger])
        self._watcher = OrphanWatcher(process_ids())
        config = self._llm.vllm_config
        self.context_length: int = config.model_config.max_model_len
        self.block_size: int = config.cache_config.block_size
        self.num_blocks: int = config.cache_config.num_gpu_blocks or 0

    @property
    def is_alive(self) -> bool:
        """Whether all processes run."""
        return not self._llm.errored

    def load(self) -> Load:
        """Return the load of all engines together."""
        loads = list(self._loads.by_engine.values()) or [Load()]
        return Load(
            sum(load.num_running for load in loads),
            sum(load.num_waiting for load in loads),
            sum(load.cache_usage for load in loads) / len(loads),
        )

    async def generate(
        self, prompt: Mapping[str, Any], sampling: Mapping[str, Any], *, request_id: str, priority: int
    ) -> AsyncGenerator[Output, None]:
        """Yield the parts of an answer.

        Closing the iterator, or cancelling its task, ends the request.

        Args:
            prompt: from `VllmPrompt`.
            sampling: from `sampling_arguments`.
            request_id: unique among those in flight.
            priority: larger runs first.

        Raises:
            EngineDied: a process of vLLM has ended.
            RequestRefused: vLLM refuses the prompt or the options.
        """
        arguments = {**sampling, "output_kind": RequestOutputKind.DELTA}
        try:
            if constraint := sampling.get("structured_outputs"):
                arguments["structured_outputs"] = StructuredOutputsParams(**constraint)
            params = SamplingParams(**arguments)
            async with aclosing(self._llm.generate(dict(prompt), params, request_id, priority=-priority)) as outputs:
                async for output in outputs:
                    yield _read(output)
        except EngineDeadError as error:
            raise EngineDied from error
        except (VLLMClientError, ValueError) as error:
            raise RequestRefused(str(error)) from error

    def shutdown(self) -> None:
        """End the processes.

        It may take seconds, so call it on a thread.
        """
        self._llm.shutdown()
        self._watcher.dismiss()


def process_ids() -> set[int]:
    """Return the processes of all engines, and those below."""
    pids = set()
    for child in multiprocessing.active_children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            engine = psutil.Process(child.pid)
            pids |= {one.pid for one in (engine, *engine.children(recursive=True))}
    return pids


def join_leader(arguments: Mapping[str, Any], joined: Connection) -> None:
    """Compute for another machine's vLLM until a process ends.

    To be run in a process of its own.

    Args:
        arguments: of vLLM's `AsyncEngineArgs`, with 'node_rank' above 0.
        joined: is sent the ids of all processes, once the leader can use them.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that vLLM ends its processes
    config = AsyncEngineArgs(**arguments).create_engine_config(headless=True)
    executor = MultiprocExecutor(config, monitor_workers=False)
    joined.send({os.getpid(), *process_ids()})
    executor.start_worker_monitor(inline=True)


def device_type() -> str:
    """Return the device that this build of vLLM computes on."""
    return str(current_platform.device_type)


def _read(output: Any) -> Output:
    completion, metrics = output.outputs[0], output.metrics
    logprobs = [
        [(token, one.logprob, one.rank or 0) for token, one in position.items()]
        for position in completion.logprobs or ()
    ]
    return Output(
        token_ids=list(completion.token_ids),
        logprobs=logprobs,
        finish_reason=completion.finish_reason,
        num_cached_prompt=output.num_cached_tokens or 0,
        queue_s=max(0.0, metrics.scheduled_ts - metrics.queued_ts) if metrics else 0.0,
        prefill_s=max(0.0, metrics.first_token_ts - metrics.scheduled_ts) if metrics else 0.0,
        is_finite=not (metrics and metrics.is_corrupted)
        and all(not math.isnan(logprob) for position in logprobs for _, logprob, _ in position),
    )
