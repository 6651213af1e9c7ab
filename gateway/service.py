"""The gateway as a process: what is opened and closed around its life."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from chassis.background import in_background
from chassis.server import Server
from checkpoint.store import ModelStore
from gateway.admission import AdmissionController, Authenticator
from gateway.answer import ExchangeBuilder, QuestionBuilder
from gateway.images import ImageStore, VisualTokenSource, open_token_source
from gateway.pipeline import Pipeline
from gateway.rollout.mirror import Mirror
from gateway.rollout.traffic import Traffic
from gateway.rollout.wiring import open_rollouts
from gateway.servicer import GatewayServicer
from gateway.settings import GatewaySettings
from gateway.stages import SERVICE_NAME, LanguageStage, ModelLoading, Releases, Stage, VisionStage, open_release
from tandem.v1 import gateway_pb2_grpc, language_pb2_grpc, vision_pb2_grpc


@asynccontextmanager
async def open_service(settings: GatewaySettings, server: Server) -> AsyncIterator[None]:
    """Read the release and add the servicers to `server`; the stages may come up before or after.

    Raises:
        TandemError: the release's files are not whole, or a file of keys, filters or TLS cannot be used.
    """
    authenticator = Authenticator(settings.keys, role_without_keys=settings.role_without_keys)
    store = ModelStore(settings.models)
    release = open_release(store, settings.release)
    async with (
        open_token_source(settings.visual_cache_config) as visual_tokens,
        _stages(settings) as (vision, language),
    ):
        releases = Releases(store, release, vision=vision, language=language)
        traffic = Traffic(releases)
        rollouts = open_rollouts(
            settings.rollout_config,
            server,
            traffic=traffic,
            releases=releases,
            life=ModelLoading(vision, language, load_timeout_s=settings.rollout_load_timeout_s),
            check_operator=partial(authenticator.authenticate, role="operator"),
        )
        async with (
            _answering(settings, server, authenticator, releases, traffic, visual_tokens),
            in_background(releases.watch(server.health, settings.refresh_s), authenticator.watch(settings.refresh_s)),
            rollouts,
        ):
            yield


@asynccontextmanager
async def _answering(
    settings: GatewaySettings,
    server: Server,
    authenticator: Authenticator,
    releases: Releases,
    traffic: Traffic,
    visual_tokens: VisualTokenSource,
) -> AsyncIterator[None]:
    """Add the servicer of `tandem.v1.Gateway`; leaving ends what runs beside its answers."""
    filters = settings.read_filters()
    images = ImageStore(max_bytes=settings.image_store_bytes, max_image_bytes=settings.max_image_bytes)
    questions = QuestionBuilder(releases, images, settings.limits, filters)
    admission = AdmissionController(settings.admission_limits)
    exchanges = ExchangeBuilder(questions, visual_tokens, filters)
    mirror = Mirror(traffic, exchanges, max_running=settings.rollout_mirror_max_running)
    servicer = GatewayServicer(
        settings,
        authenticator=authenticator,
        admission=admission,
        pipeline=Pipeline(admission, traffic, exchanges, mirror),
        questions=questions,
        traffic=traffic,
        releases=releases,
        images=images,
    )
    gateway_pb2_grpc.add_GatewayServicer_to_server(servicer, server.grpc)
    server.announce(SERVICE_NAME)
    try:
        yield
    finally:
        await mirror.close()


@asynccontextmanager
async def _stages(settings: GatewaySettings) -> AsyncIterator[tuple[VisionStage, LanguageStage]]:
    """Open channels to both stages; leaving closes them."""
    async with AsyncExitStack() as opened:
        tls = settings.channel_tls
        vision: VisionStage = Stage("vision", settings.vision, vision_pb2_grpc.VisionServiceStub, tls=tls)
        opened.push_async_callback(vision.close)
        language: LanguageStage = Stage("language", settings.language, language_pb2_grpc.LanguageServiceStub, tls=tls)
        opened.push_async_callback(language.close)
        yield vision, language
