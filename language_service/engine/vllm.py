"""vLLM as an engine, behind the same interface as our own.

vLLM computes in child processes. When one dies, all requests fail and the engine refuses new ones while it starts vLLM
again. After too many deaths the process ends.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from chassis.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted, TandemError, Unavailable
from chassis.vital import vital
from language_service.engine.interface import EngineConfig, EngineDescription, EngineStats
from language_service.engine.metrics import EngineMetrics
from language_service.engine.restarts import MOST, Restarts
from language_service.engine.vllm_arguments import spans_machines
from language_service.engine.vllm_client import EngineDied, RequestRefused, VllmClient
from language_service.engine.vllm_generation import VllmGeneration
from language_service.engine.vllm_prompt import PromptForm, VllmPrompt
from language_service.engine.vllm_sampling import check_options, sampling_arguments
from language_service.sampling import Grammar, SamplingOptions

_log = structlog.get_logger()

_WATCH_S = 0.1  # between two looks at vLLM's processes


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmModel:
    """Facts about the model that vLLM runs."""

    tag: str
    form: PromptForm
    eos_token_ids: frozenset[int]
    vocab_size: int
    num_parameters: int
    num_weight_bytes: int


class VllmEngine:
    """Implements `Engine`. Made, used and closed on one event loop."""

    def __init__(
        self,
        start: Callable[[], Awaitable[VllmClient]],
        client: VllmClient,
        model: VllmModel,
        config: EngineConfig,
        folder: tempfile.TemporaryDirectory[str],
    ) -> None:
        """Watch a running vLLM.

        Args:
            start: starts it again. Cancelling it ends all processes that it has made.
            client: of the running one.
            model: that it runs.
            config: of the engine.
            folder: from which it reads the model. Removed at the end.
        """
        self._start, self._client, self._model, self._config, self._folder = start, client, model, config, folder
        self._generations: set[VllmGeneration] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unusable: TandemError | None = None  # why it takes no requests now
        self._is_closed = False
        self._numbers = itertools.count()
        # The processes of other machines end, too. What supervises them must start all of them together.
        self._restarts = Restarts(0 if spans_machines(config) else MOST)
        self._context_length = client.context_length
        self._metrics = EngineMetrics(model.tag, self.stats, "vllm")
        self._watching = asyncio.create_task(self._watch())

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests now."""
        return self._unusable is None

    @property
    def context_length(self) -> int:
        """Most tokens of one request."""
        return self._context_length

    @property
    def description(self) -> EngineDescription:
        """Fixed facts about the engine and its model."""
        return EngineDescription(
            backend="vllm",
            kernels="vllm",
            num_parameters=self._model.num_parameters,
            num_weight_bytes=self._model.num_weight_bytes,
            block_size=self._client.block_size,
            num_blocks=self._client.num_blocks,
            num_cache_bytes=self._config.cache_bytes or 0,
        )

    def open(
        self,
        options: SamplingOptions,
        *,
        salt: bytes,
        priority: int,
        is_background: bool = False,
        grammar: Grammar | None = None,
    ) -> VllmGeneration:
        """Start a request, see `Engine`.

        `grammar` has proved that the constraint can be used. vLLM follows it by itself.
        """
        if self._unusable is not None:
            raise self._unusable
        check_options(options)
        limits = self._config.scheduling
        if len(self._generations) >= limits.max_running + limits.max_waiting:
            message = f"The queue is full with {limits.max_waiting} requests, so retry later."
            raise ResourceExhausted(message, reason="QUEUE_FULL", retry_after_s=1)
        generation = VllmGeneration(
            VllmPrompt(self._model.form, salt=salt),
            options,
            ends=options.stop_token_ids | (frozenset() if options.ignore_eos else self._model.eos_token_ids),
            run=lambda generation, max_tokens: self._run(generation, max_tokens, priority),
            forget=self._generations.discard,
        )
        self._generations.add(generation)
        return generation

    def stats(self) -> EngineStats:
        """Return the current load.

        vLLM reports its own only while it computes.
        """
        load, num_open = self._client.load(), len(self._generations)
        num_running = min(load.num_running, num_open)
        return EngineStats(
            num_running=num_running,
            num_waiting=num_open - num_running,
            num_used_blocks=round(load.cache_usage * self._client.num_blocks) if num_open else 0,
            num_evictable_blocks=0,
            num_blocks=self._client.num_blocks,
        )

    async def close(self) -> None:
        """Fail unfinished requests with Unavailable and end vLLM."""
        self._is_closed = True
        self._unusable = Unavailable(
            "The model is being unloaded, so retry elsewhere.", reason="MODEL_DRAINING", retry_after_s=1
        )
        self._watching.cancel()
        await asyncio.wait([self._watching])
        await self._fail_all(self._unusable)
        await asyncio.to_thread(self._client.shutdown)
        await asyncio.to_thread(self._folder.cleanup)
        self._metrics.close()

    async def check(self) -> None:
        """Let vLLM compute one token.

        Raises:
            FailedPrecondition: reason 'BAD_CHECKPOINT', the weights give numbers that are not finite.
        """
        generation = self.open(SamplingOptions(ignore_eos=True, num_logprobs=0), salt=b"", priority=0)
        generation.add_text([next(iter(self._model.eos_token_ids))])
        generation.end_prompt(1)
        try:
            async for _ in generation:
                pass
        except Internal:
            message = f"The language half of {self._model.tag} gives logits that are not finite."
            raise FailedPrecondition(message, reason="BAD_CHECKPOINT") from None

    async def _run(self, generation: VllmGeneration, max_tokens: int, priority: int) -> None:
        """Send a prompt to vLLM and read the answer."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            sampling = sampling_arguments(
                generation.options, max_tokens=max_tokens, ends=generation.ends, vocab_size=self._model.vocab_size
            )
            prompt, request_id = generation.prompt.build(), str(next(self._numbers))
            answer = self._client.generate(prompt, sampling, request_id=request_id, priority=priority)
            async with aclosing(answer) as outputs:
                async for output in outputs:
                    generation.accept(output)
            usage = generation.usage()
            self._metrics.count(
                num_prompt=usage.num_prompt - usage.num_cached_prompt,
                num_cached=usage.num_cached_prompt,
                num_answer=usage.num_answer,
            )
        except TandemError as error:
            generation.fail(error)
        except EngineDied:
            generation.fail(_died())
        except RequestRefused as error:
            _log.warning("vllm refused a request", tag=self._model.tag, error=str(error))
            generation.fail(
                InvalidArgument("vLLM refuses this combination of prompt and options.", reason="NOT_SUPPORTED")
            )
        except Exception:
            _log.exception("vllm failed in a request", tag=self._model.tag)
            self._metrics.failed_step()
            generation.fail(Internal("The model failed in this step.", reason="STEP_FAILED"))
        finally:
            self._generations.discard(generation)
            self._tasks.discard(task)

    async def _watch(self) -> None:
        """Start vLLM again when it has died.

        Too many deaths end the process.
        """
        with vital(f"vllm of {self._model.tag}"):
            while True:
                await asyncio.sleep(_WATCH_S)
                if not self._client.is_alive:
                    await self._recover()

    async def _recover(self) -> None:
        self._unusable = _died()
        _log.error("vllm died", tag=self._model.tag, num_requests=len(self._generations))
        self._metrics.failed_step()
        await self._fail_all(self._unusable)
        await asyncio.to_thread(self._client.shutdown)
        while (pause_s := self._restarts.pause_s(time.monotonic())) is not None:
            await asyncio.sleep(pause_s)
            try:
                self._client = await self._start()
            except Exception:
                _log.exception("vllm did not start again", tag=self._model.tag)
            else:
                self._unusable = None
                _log.warning("vllm started again", tag=self._model.tag)
                return
        raise RuntimeError("vllm died too often")

    async def _fail_all(self, error: TandemError) -> None:
        """Fail all requests and wait until their tasks have ended."""
        for generation in list(self._generations):
            generation.fail(error)
            generation.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))


def _died() -> Unavailable:
    return Unavailable(
        "The engine has died and starts again, so retry elsewhere.", reason="ENGINE_DEAD", retry_after_s=1
    )
