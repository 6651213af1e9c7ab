"""Serve `tandem.v1.Gateway`: translate calls for the pipeline."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from chassis.deadline import Deadline
from chassis.errors import DeadlineExceeded
from gateway.admission import AdmissionController, Authenticator, Tenant
from gateway.answer import Tokenization
from gateway.images import ImageStore
from gateway.pipeline import Pipeline
from gateway.rollout.feedback import Feedback
from gateway.rollout.traffic import Traffic
from gateway.settings import GatewaySettings
from gateway.stages import Pin, Releases
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

RELEASE_HEADER = "x-tandem-release"

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class GatewayServicer(gateway_pb2_grpc.GatewayServicer):
    """The calls of the gateway.

    They raise errors, which the server's interceptor sends.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        authenticator: Authenticator,
        admission: AdmissionController,
        pipeline: Pipeline,
        tokenization: Tokenization,
        traffic: Traffic,
        releases: Releases,
        images: ImageStore,
        feedback: Feedback,
    ) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._admission = admission
        self._pipeline = pipeline
        self._tokenization = tokenization
        self._traffic = traffic
        self._releases = releases
        self._images = images
        self._feedback = feedback

    # Writes each message itself instead of yielding it. A cancelled call then unwinds the pipeline where it waits.
    # A generator could leave the pipeline's task group suspended at a yield.
    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: gateway_pb2.GatewayGenerateRequest, context: Context
    ) -> None:
        """Answer a conversation about images with a stream of text."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        deadline = Deadline.after(self._settings.timeout_s(context.time_remaining()))
        await self._pipeline.answer(
            request,
            tenant=tenant,
            pin=_pin(context, tenant),
            deadline=deadline,
            send=context.write,
            peer=context.peer(),
        )

    async def PutImage(  # noqa: N802
        self, request_iterator: AsyncIterable[gateway_pb2.PutImageRequest], context: Context
    ) -> gateway_pb2.PutImageResponse:
        """Store a large image, sent in chunks."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        try:
            # The timeout also keeps a slow client from occupying an upload slot forever.
            async with (
                asyncio.timeout(self._settings.timeout_s(context.time_remaining())),
                self._admission.admit_upload(tenant) as held,
            ):
                sha256, num_bytes = await self._images.put(_chunks(request_iterator), tenant.salt, held)
        except TimeoutError:
            raise DeadlineExceeded("The deadline passed before the end of the upload: set a later one.") from None
        return gateway_pb2.PutImageResponse(sha256=sha256, num_bytes=num_bytes)

    async def CountTokens(  # noqa: N802
        self, request: gateway_pb2.CountTokensRequest, context: Context
    ) -> gateway_pb2.CountTokensResponse:
        """Count the tokens of a conversation."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        async with self._admission.admit_tokenizing(tenant, request.ByteSize()) as held:
            release = await self._traffic.release_for(_pin(context, tenant))
            return await self._tokenization.count(request, release, tenant, held)

    async def Tokenize(  # noqa: N802
        self, request: gateway_pb2.TokenizeRequest, context: Context
    ) -> gateway_pb2.TokenizeResponse:
        """Return the tokens of a text or a conversation."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        async with self._admission.admit_tokenizing(tenant, request.ByteSize()) as held:
            release = await self._traffic.release_for(_pin(context, tenant))
            return await self._tokenization.tokenize(request, release, tenant, held)

    async def Detokenize(  # noqa: N802
        self, request: gateway_pb2.DetokenizeRequest, context: Context
    ) -> gateway_pb2.DetokenizeResponse:
        """Return the text of tokens."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        async with self._admission.admit_tokenizing(tenant, request.ByteSize()):
            return await self._tokenization.detokenize(request, await self._traffic.release_for(_pin(context, tenant)))

    async def ListModels(  # noqa: N802
        self, request: gateway_pb2.GatewayListModelsRequest, context: Context
    ) -> gateway_pb2.GatewayListModelsResponse:
        """List the releases that the caller may pin."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        releases = await self._releases.list(with_trial=tenant.may_pin_canary)
        return gateway_pb2.GatewayListModelsResponse(releases=releases)

    async def Feedback(  # noqa: N802
        self, request: gateway_pb2.FeedbackRequest, context: Context
    ) -> gateway_pb2.FeedbackResponse:
        """Rate an answer."""
        tenant = self._authenticator.authenticate(context.invocation_metadata())
        self._admission.count_request(tenant)
        counted = await self._feedback.rate(tenant.name, request.request_id, request.score, request.label)
        return gateway_pb2.FeedbackResponse(counted=counted)


def _pin(context: Context, tenant: Tenant) -> Pin | None:
    """Return the release named in the metadata, or None."""
    for key, value in context.invocation_metadata() or ():
        if key == RELEASE_HEADER:
            return Pin(str(value), may_be_on_trial=tenant.may_pin_canary)
    return None


async def _chunks(requests: AsyncIterable[gateway_pb2.PutImageRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request.chunk
