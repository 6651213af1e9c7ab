"""The language service as a process: settings, start and stop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from chassis.server import Server
from checkpoint.store import ModelStore
from hosting import ModelHost, StageSettings
from language_service.engine import AttentionName, EngineConfig, EngineName, KernelName
from language_service.loader import LanguageLoader
from language_service.scheduling import SchedulerConfig
from language_service.servicer import SERVICE_NAME, LanguageServicer
from tandem.v1 import language_pb2_grpc


class LanguageSettings(StageSettings):
    """Settings of the language service."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_LANGUAGE_", cli_prog_name="python -m language_service")

    listen: str = Field("127.0.0.1:50052", description="host:port to serve gRPC on; port 0 picks a free one")
    engine: EngineName = Field(
        "tandem", description="engine that runs the language half: tandem or vllm. One kind for each tag"
    )
    engine_args: dict[str, Any] = Field(
        {},
        description="further arguments of vLLM, as a JSON object. With node_rank above 0 the process serves nothing, "
        "and computes for the machine that leads",
    )
    kv_cache_bytes: int | None = Field(
        None, ge=1, description="size of each model's KV cache, bytes. Unset uses kv_cache_fraction"
    )
    kv_cache_fraction: float = Field(
        0.5,
        gt=0,
        le=1,
        description="size of each model's KV cache, as a fraction of the memory available after its weights are loaded",
    )
    kernels: KernelName = Field(
        "auto",
        description="kernels of the decoder: those of an instruction set (amx, avx512bf16, avx512, avx2, neonbf16, "
        "neon), which compute bfloat16, plain for torch's, or auto for the fastest",
    )
    decode_attention: AttentionName = Field(
        "auto",
        description="attention of sequences that decode: torch, triton, or auto, which measures both on a GPU and "
        "takes torch on a CPU",
    )
    block_size: int = Field(16, ge=1, le=1024, description="tokens in one block of the KV cache")
    max_running: int = Field(64, ge=1, description="most sequences in the continuous batch of a model")
    max_waiting: int = Field(256, ge=1, description="most requests in the queue of a model")
    max_step_tokens: int = Field(
        512, ge=2, validate_default=True, description="most tokens computed in one step. Must be above max_running"
    )
    prefix_cache: bool = Field(True, description="compute equal prefixes of prompts once")
    max_drafts: int = Field(
        0,
        ge=0,
        le=64,
        description="most draft tokens (n-gram speculation) per sequence and step. 0 drafts none",
    )
    jump_ahead: bool = Field(
        True, description="compute tokens that a constraint forces together with the token before them"
    )
    max_images: int = Field(8, ge=0, description="most images in one prompt")
    default_max_tokens: int = Field(256, ge=1, description="longest answer of a request without a limit, tokens")
    segment_timeout_s: float = Field(
        600,  # as long as the gateway's longest deadline, which ends a request earlier if it is shorter
        gt=0,
        allow_inf_nan=False,
        description="longest wait for the next segment of a prompt, seconds",
    )

    @field_validator("engine_args")
    @classmethod
    def _belongs_to_vllm(cls, engine_args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if engine_args and info.data.get("engine") != "vllm":
            raise ValueError("only --engine vllm takes further arguments")
        if not all(isinstance(engine_args.get(name, 0), int) for name in ("nnodes", "node_rank")):
            raise ValueError("nnodes and node_rank must be integers")
        return engine_args

    @property
    def is_follower(self) -> bool:
        """Whether it computes for vLLM on another machine."""
        return bool(self.engine_args.get("node_rank", 0) > 0)

    @model_validator(mode="after")
    def _serves_one_tag_on_several_machines(self) -> Self:
        if self.engine_args.get("nnodes", 1) > 1 and len(self.tags) != 1:
            raise ValueError("several machines (nnodes) serve exactly one tag: set --tags")
        return self

    @field_validator("max_step_tokens")
    @classmethod
    def _leaves_tokens_for_prefill(cls, max_step_tokens: int, info: ValidationInfo) -> int:
        if max_step_tokens <= info.data.get("max_running", 0):
            raise ValueError("must be above max_running, because prefill needs the rest")
        return max_step_tokens


@asynccontextmanager
async def open_service(settings: LanguageSettings, server: Server) -> AsyncIterator[None]:
    """Load the models and add the servicer to `server`.

    Unloads the models on exit.

    Raises:
        TandemError: a model of `settings.tags` could not be loaded.
    """
    loader = _loader(settings)
    models = ModelHost(load=loader.load, health=server.health, service_name=SERVICE_NAME)
    servicer = LanguageServicer(models, segment_timeout_s=settings.segment_timeout_s)
    language_pb2_grpc.add_LanguageServiceServicer_to_server(servicer, server.grpc)
    server.announce(SERVICE_NAME, settings.callers.name_of)
    try:
        for tag in settings.tags:
            await models.load(tag)
        yield
    finally:
        await models.close()


@asynccontextmanager
async def open_follower(settings: LanguageSettings, _server: Server) -> AsyncIterator[None]:
    """Compute for the vLLM of another machine.

    The server answers health checks alone, once the leader can use this machine.

    Raises:
        TandemError: the model could not be loaded, or vLLM could not join its leader.
    """
    [tag] = settings.tags
    follower = await _loader(settings).follow(tag)
    try:
        yield
    finally:
        await follower.close()


def _loader(settings: LanguageSettings) -> LanguageLoader:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return LanguageLoader(
        store=ModelStore(settings.models),
        engine=settings.engine,
        config=_engine_config(settings),
        max_images=settings.max_images,
        default_max_tokens=settings.default_max_tokens,
    )


def _engine_config(settings: LanguageSettings) -> EngineConfig:
    return EngineConfig(
        dtype=settings.dtype,
        device=torch.device(settings.device),
        scheduling=SchedulerConfig(
            block_size=settings.block_size,
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            max_step_tokens=settings.max_step_tokens,
            reuse_prefixes=settings.prefix_cache,
            max_drafts=settings.max_drafts,
            jump_ahead=settings.jump_ahead,
        ),
        cache_bytes=settings.kv_cache_bytes,
        kernels=settings.kernels,
        decode_attention=settings.decode_attention,
        cache_fraction=settings.kv_cache_fraction,
        engine_args=settings.engine_args,
    )
