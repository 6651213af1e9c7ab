"""Open vLLM as an engine: write the model, start, check."""

import asyncio
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from chassis.errors import FailedPrecondition
from checkpoint.families import Qwen3VLConfig
from checkpoint.tokenizer import read_tokenizer
from checkpoint.weights import LoadedHalf
from language_service.engine.interface import EngineConfig
from language_service.engine.vllm import VllmEngine, VllmModel
from language_service.engine.vllm_arguments import engine_arguments
from language_service.engine.vllm_client import VllmClient, device_type, process_ids
from language_service.engine.vllm_folder import VIDEO_TOKEN, write_vllm_folder
from language_service.engine.vllm_follower import VllmFollower
from language_service.engine.vllm_prompt import PromptForm
from language_service.engine.vllm_start import start_on_thread

_log = structlog.get_logger()


async def open_vllm_engine(half: LoadedHalf, tokenizer_json: str, config: EngineConfig, *, tag: str) -> VllmEngine:
    """Return vLLM as an engine, as `open_engine` describes."""
    with _model_folder() as folder:
        arguments, model = await _prepare(folder.name, half, tokenizer_json, config, tag)
        client = await _start(arguments, tag)
    engine = VllmEngine(lambda: _start_client(arguments), client, model, config, folder)
    try:
        await engine.check()
    except BaseException:
        await engine.close()
        raise
    return engine


async def open_vllm_follower(half: LoadedHalf, tokenizer_json: str, config: EngineConfig, *, tag: str) -> VllmFollower:
    """Join the vLLM of another machine, as `join_engine` describes."""
    with _model_folder() as folder:
        arguments, _ = await _prepare(folder.name, half, tokenizer_json, config, tag)
        return await VllmFollower.join(arguments, folder)


@contextmanager
def _model_folder() -> Iterator[tempfile.TemporaryDirectory[str]]:
    """Make a folder that an error of the block removes."""
    folder = tempfile.TemporaryDirectory(prefix="tandem-vllm-", ignore_cleanup_errors=True)
    try:
        yield folder
    except BaseException:
        folder.cleanup()
        raise


async def _prepare(
    folder: str, half: LoadedHalf, tokenizer_json: str, config: EngineConfig, tag: str
) -> tuple[dict[str, Any], VllmModel]:
    """Write the model, and return the arguments of vLLM."""
    if device_type() != config.device.type:
        raise FailedPrecondition(
            f"This vLLM computes on {device_type()}, so start the service with --device {device_type()}.",
            reason="WRONG_DEVICE",
        )
    arguments = engine_arguments(Path(folder), config, has_grids=isinstance(half.config, Qwen3VLConfig))
    return arguments, await asyncio.to_thread(_write_model, Path(folder), half, tokenizer_json, config, tag)


async def _start_client(arguments: Mapping[str, Any]) -> VllmClient:
    return await start_on_thread(lambda: VllmClient(arguments), process_ids)


async def _start(arguments: Mapping[str, Any], tag: str) -> VllmClient:
    try:
        return await _start_client(arguments)
    except Exception:
        _log.exception("vllm did not start", tag=tag)
        raise FailedPrecondition(
            f"vLLM did not start with {tag}: see the log of the service.", reason="ENGINE_NOT_STARTED"
        ) from None


def _write_model(folder: Path, half: LoadedHalf, tokenizer_json: str, config: EngineConfig, tag: str) -> VllmModel:
    language = half.config.language
    num_parameters = sum(tensor.numel() for tensor in half.tensors.values())
    num_weight_bytes = sum(tensor.nbytes for tensor in half.tensors.values())
    modality_D = write_vllm_folder(folder, half.config, half.tensors, tokenizer_json, dtype=config.dtype)
    _log.info("model written for vllm", tag=tag, num_bytes=num_weight_bytes)
    image_token_id, reserved, merge_size = None, frozenset[int](), 1
    if isinstance(half.config, Qwen3VLConfig):
        tokenizer = read_tokenizer(tokenizer_json)
        ids = [tokenizer.token_to_id(token) for token in (half.config.image_token, VIDEO_TOKEN)]
        image_token_id, reserved = ids[0], frozenset(token for token in ids if token is not None)
        merge_size = half.config.vision.merge_size
    return VllmModel(
        tag=tag,
        form=PromptForm(
            width=language.width,
            dtype=config.dtype,
            modality_D=modality_D,
            image_token_id=image_token_id,
            reserved=reserved,
            merge_size=merge_size,
        ),
        eos_token_ids=frozenset(language.eos_token_ids),
        vocab_size=language.vocab_size,
        num_parameters=num_parameters,
        num_weight_bytes=num_weight_bytes,
    )
