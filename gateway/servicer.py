"""`tandem.v1.Gateway`: translates between calls and the pipeline."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from chassis.deadline import Deadline
from chassis.errors import DeadlineExceeded
from gateway.admission import AdmissionController, Authenticator
from gateway.answer import QuestionBuilder
from gateway.images import ImageStore
from gateway.pipeline import Pipeline
from gateway.rollout.traffic import Traffic
from gateway.settings import GatewaySettings
from gateway.stages import Releases
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

RELEASE_HEADER = "x-tandem-release"

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class GatewayServicer(gateway_pb2_grpc.GatewayServicer):
    """Answers the four calls; errors are raised and mapped by the server's interceptor."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        authenticator: Authenticator,
        admission: AdmissionController,
        pipeline: Pipeline,
        questions: QuestionBuilder,
        traffic: Traffic,
        releases: Releases,
        images: ImageStore,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._admission = admission
        self._pipeline = pipeline
        self._questions = questions
        self._traffic = traffic
        self._releases = releases
        self._images = images

    # Written message by message and not as a generator: a cancelled call then unwinds the pipeline where it waits,
    # and the task group in there may not be left suspended at a yield.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: gateway_pb2.GatewayGenerateRequest, context: Context
    ) -> None:
        """Answer a conversation about images, as a stream of text."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        deadline = Deadline.after(self._settings.deadline_s(context.time_remaining()))
        await self._pipeline.answer(request, tenant=tenant, pin=_pin(context), deadline=deadline, send=context.write)

    async def PutImage(  # noqa: N802
        self, request_iterator: AsyncIterable[gateway_pb2.PutImageRequest], context: Context
    ) -> gateway_pb2.PutImageResponse:
        """Take a large image in chunks."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        try:
            async with (
                asyncio.timeout(self._settings.deadline_s(context.time_remaining())),
                self._admission.admit_upload(tenant),
            ):
                sha256, num_bytes = await self._images.put(_chunks(request_iterator), tenant.salt)
        except TimeoutError:  # a place is not for whoever sends a byte an hour
            raise DeadlineExceeded("The image did not come in time.") from None
        return gateway_pb2.PutImageResponse(sha256=sha256, num_bytes=num_bytes)

    async def CountTokens(  # noqa: N802
        self, request: gateway_pb2.CountTokensRequest, context: Context
    ) -> gateway_pb2.CountTokensResponse:
        """Count the tokens a conversation would take."""
        self._admission.count_request(self._authenticator.authenticate(context.invocation_metadata()))
        return await self._questions.count(request.messages, await self._traffic.release_for(_pin(context)))

    async def ListModels(  # noqa: N802
        self, request: gateway_pb2.GatewayListModelsRequest, context: Context
    ) -> gateway_pb2.GatewayListModelsResponse:
        """List the releases, as their stages are at this moment."""
        self._authenticator.authenticate(context.invocation_metadata())
        return gateway_pb2.GatewayListModelsResponse(releases=await self._releases.list())


def _pin(context: Context) -> str | None:
    """Return the release the client asks for by metadata, or None."""
    for key, value in context.invocation_metadata() or ():
        if key == RELEASE_HEADER:
            return str(value)
    return None


async def _chunks(requests: AsyncIterable[gateway_pb2.PutImageRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.chunk
