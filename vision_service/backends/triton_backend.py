"""The vision half on a Triton server.

The client runs on the service's event loop, so a request that is cancelled or expires cancels its call to Triton.
Triton forms the batches, over all vision services that use it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import np_to_triton_dtype

from chassis.channels import channel_options
from chassis.errors import FailedPrecondition, Internal, TandemError
from chassis.request_id import REQUEST_ID_HEADER, current_request_id
from checkpoint.exports import Export
from checkpoint.families import ModelConfig, layout
from checkpoint.tags import parse_tag
from vision_service.backends.interface import BackendOptions, TritonOptions
from vision_service.backends.triton_errors import not_ready, translated_errors
from vision_service.backends.triton_memory import SharedInputs
from vision_service.backends.triton_names import digest_parameter, triton_version
from vision_service.model import OUTPUT, GraphBatch, graph_batches

_CHECK_TIMEOUT_S = 5.0  # of calls without images
_MAX_MESSAGE_BYTES = 2**31 - 1  # as in tritonclient
_TOKEN_TYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One version of a model in Triton's repository."""

    name: str
    version: str


class TritonBackend:
    """Runs the vision half on a Triton server.

    `name` is part of the encoder id, as in `VisionBackend`. For one event loop. `encode` is for other threads.
    """

    name = "triton"
    device = "remote"

    def __init__(self, config: ModelConfig, export: Export, model: TritonModel, options: TritonOptions) -> None:
        """Open a channel on the running event loop.

        Args:
            config: of the checkpoint.
            export: record of the ONNX export that Triton runs.
            model: the version of it.
            options: where Triton is.
        """
        self.precision, self.export_digest = export.precision, export.digest
        self.num_parameters = sum(spec.num_parameters for spec in layout(config) if spec.half == "vision")
        self.num_weight_bytes = 0  # none in this process
        self._config, self._model, self._options = config, model, options
        self._loop = asyncio.get_running_loop()
        self._client = InferenceServerClient(options.address, channel_args=channel_options(_MAX_MESSAGE_BYTES))
        self._memory = None if options.shared_memory == "none" else SharedInputs(self._client, options.shared_memory)

    async def check(self) -> None:
        """Check that Triton serves this version of this export.

        Raises:
            Unavailable: reason 'TRITON_UNREACHABLE', 'TRITON_NOT_READY', or 'TRITON_NO_VERSION'.
            FailedPrecondition: reason 'TRITON_OTHER_EXPORT', this version runs another export.
        """
        name, version = self._model.name, self._model.version
        with translated_errors():
            response = await self._client.get_model_config(name, version, client_timeout=_CHECK_TIMEOUT_S)
        found = response.config.parameters[digest_parameter(version)].string_value
        if found != self.export_digest.hex():
            raise FailedPrecondition(
                f"Version {version} of Triton's model {name} runs another export than the checkpoint's: add it again "
                "with `tandem checkpoint export TAG --to triton-repository`, and reload the model.",
                reason="TRITON_OTHER_EXPORT",
            )
        if not await self.is_ready():
            raise not_ready()

    async def is_ready(self) -> bool:
        """Return whether Triton serves this version now."""
        try:
            with translated_errors():
                return bool(
                    await self._client.is_model_ready(
                        self._model.name, self._model.version, client_timeout=_CHECK_TIMEOUT_S
                    )
                )
        except TandemError:
            return False

    async def encode_async(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return each image's visual tokens, as `VisionBackend.encode` does.

        A cancelled call is cancelled in Triton, too.

        Raises:
            Unavailable: reason 'TRITON_UNREACHABLE', 'TRITON_NOT_READY' or 'TRITON_NO_VERSION'.
            ResourceExhausted: reason 'QUEUE_FULL'.
            DeadlineExceeded: reason 'TRITON_TIMEOUT'.
            Internal: reason 'TRITON_FAILED', or 'BAD_OUTPUT' for tokens of a wrong shape or type.
        """
        tokens: dict[int, NDArray[np.uint16]] = {}
        for batch in graph_batches(self._config, images):
            tokens.update(zip(batch.images, await self._run(batch), strict=True))
        return [tokens[place] for place in range(len(images))]

    def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        """Return each image's visual tokens, for other threads."""
        return asyncio.run_coroutine_threadsafe(self.encode_async(images), self._loop).result()

    async def close(self) -> None:
        """Close the channel and free shared memory."""
        if self._memory is not None:
            await self._memory.close()
        await self._client.close()

    async def _run(self, batch: GraphBatch) -> list[NDArray[np.uint16]]:
        with translated_errors():
            result = await self._infer(batch)
        tokens_BND = _tokens_of(result, _TOKEN_TYPES[self.precision])
        expected = (len(batch.images), batch.num_tokens, self._config.token_width)
        if tokens_BND is None or tokens_BND.shape != expected:
            raise Internal("Triton returned visual tokens of a wrong shape or type.", reason="BAD_OUTPUT")
        return [_to_bits(tokens_ND) for tokens_ND in tokens_BND]

    async def _infer(self, batch: GraphBatch) -> InferResult:
        pairs = [
            (InferInput(name, array.shape, np_to_triton_dtype(array.dtype)), array)
            for name, array in batch.inputs.items()
        ]
        request_id = current_request_id() or ""

        async def call() -> InferResult:
            return await self._client.infer(
                self._model.name,
                [tensor for tensor, _ in pairs],
                model_version=self._model.version,
                outputs=[InferRequestedOutput(OUTPUT)],
                request_id=request_id,
                timeout=round(self._options.timeout_s * 1e6),  # also ends the wait in Triton's queue
                client_timeout=self._options.timeout_s,
                headers={REQUEST_ID_HEADER: request_id} if request_id else None,
            )

        if self._memory is not None:
            return await self._memory.run(pairs, call)
        for tensor, array in pairs:
            tensor.set_data_from_numpy(array)
        return await call()


def open_triton(config: ModelConfig, tag: str, export: Export, options: BackendOptions) -> TritonBackend:
    """Connect to the version of a tag, from another thread.

    Args:
        config: of the checkpoint.
        tag: of the checkpoint.
        export: record of the ONNX export that Triton runs.
        options: with the event loop.

    Raises:
        Unavailable, FailedPrecondition: as `TritonBackend.check`. FailedPrecondition: UNSUPPORTED, without a loop.
    """
    if options.loop is None:
        raise FailedPrecondition("The backend triton runs in the vision service only.", reason="UNSUPPORTED")

    async def connect() -> TritonBackend:
        parsed = parse_tag(tag)
        model = TritonModel(name=options.triton.model or parsed.name, version=triton_version(parsed))
        backend = TritonBackend(config, export, model, options.triton)
        try:
            await backend.check()
        except BaseException:
            await backend.close()
            raise
        return backend

    return asyncio.run_coroutine_threadsafe(connect(), options.loop).result()


def _tokens_of(result: InferResult, data_type: str) -> NDArray[Any] | None:
    """Return the tokens of an answer, None without this type."""
    output = result.get_output(OUTPUT)
    if output is None or output.datatype != data_type:
        return None
    try:
        tokens: NDArray[Any] = result.as_numpy(OUTPUT)
    except ValueError:  # fewer bytes than the shape has
        return None
    return tokens


def _to_bits(tokens_ND: NDArray[Any]) -> NDArray[np.uint16]:
    """Return tokens as bfloat16 bit patterns, copied."""
    if (
        tokens_ND.dtype.itemsize == 2 and tokens_ND.dtype != np.float16
    ):  # numpy has no bfloat16, tritonclient brings one
        return tokens_ND.view(np.uint16).copy()
    rounded = torch.from_numpy(tokens_ND.copy()).to(torch.bfloat16)  # of a message, which is read-only
    return rounded.view(torch.uint16).numpy()
