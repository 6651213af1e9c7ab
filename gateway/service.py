"""Create the parts of the gateway, and connect them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from chassis.background import in_background
from chassis.server import Server
from checkpoint.store import ModelStore
from gateway.admission import AdmissionController, Authenticator, Operators
from gateway.answer import ExchangeBuilder, QuestionBuilder, Tokenization
from gateway.images import open_images
from gateway.operations import SERVICE_NAME as OPERATIONS_SERVICE_NAME
from gateway.operations import OperationsServicer, RequestWindow
from gateway.pipeline import Pipeline
from gateway.rollout.answer_rules import AnswerRules, read_refusals
from gateway.rollout.feedback import Feedback
from gateway.rollout.mirror import Mirror
from gateway.rollout.traffic import Traffic
from gateway.rollout.wiring import open_rollouts
from gateway.servicer import GatewayServicer
from gateway.settings import GatewaySettings
from gateway.stages import (
    SERVICE_NAME,
    LanguageStage,
    LanguageStub,
    ModelLoading,
    Releases,
    Stage,
    VisionStage,
    open_release,
)
from tandem.v1 import gateway_pb2_grpc, operations_pb2_grpc, vision_pb2_grpc


@asynccontextmanager
async def open_service(settings: GatewaySettings, server: Server) -> AsyncIterator[None]:
    """Open the gateway and add its servicers to `server`.

    The stages may start before or after. Everything is closed at the end of the block, in reverse order.

    Raises:
        TandemError: the release's files are damaged, or a file of keys, filters or TLS is invalid.
    """
    authenticator = Authenticator(
        settings.keys, role_without_keys=settings.role_without_keys, num_workers=settings.workers
    )
    filters = settings.read_filters()
    store = ModelStore(settings.models)
    default_release = open_release(store, settings.release)
    async with AsyncExitStack() as stack:
        images, visual_tokens = await stack.enter_async_context(open_images(settings.images_config))
        vision, language = _open_stages(settings, stack)
        releases = Releases(store, default_release, vision=vision, language=language)
        traffic = Traffic(releases, trusts_callers=settings.rollout_trusts_callers)

        questions = QuestionBuilder(releases, images, settings.limits, filters)
        exchanges = ExchangeBuilder(questions, visual_tokens, filters)
        rules = AnswerRules(read_refusals(settings.rollout_refusals))
        admission = AdmissionController(settings.admission_limits)
        mirror = Mirror(admission, traffic, exchanges, rules, max_running=settings.rollout_mirror_max_running)
        stack.push_async_callback(mirror.close)
        feedback = Feedback(traffic)
        window = RequestWindow()

        servicer = GatewayServicer(
            settings,
            authenticator=authenticator,
            admission=admission,
            pipeline=Pipeline(admission, traffic, exchanges, mirror, feedback, window),
            feedback=feedback,
            tokenization=Tokenization(releases, images, settings.limits),
            traffic=traffic,
            releases=releases,
            images=images,
        )
        gateway_pb2_grpc.add_GatewayServicer_to_server(servicer, server.grpc)
        server.announce(SERVICE_NAME, authenticator.name_of)

        watch_stages = releases.watch(server.health, settings.refresh_s)
        watch_keys = authenticator.watch(settings.refresh_s)
        await stack.enter_async_context(in_background(watch_stages, watch_keys))
        operators = Operators(authenticator, admission)
        rollouts = open_rollouts(
            settings.rollout_config,
            server,
            traffic=traffic,
            releases=releases,
            loading=ModelLoading(vision, language, load_timeout_s=settings.rollout_load_timeout_s),
            exchanges=exchanges,
            feedback=feedback,
            models=store,
            operators=operators,
        )
        store_sync = await stack.enter_async_context(rollouts)
        operations = OperationsServicer(
            releases=releases, traffic=traffic, window=window, store_sync=store_sync, operators=operators
        )
        operations_pb2_grpc.add_OperationsServicer_to_server(operations, server.grpc)
        server.announce(OPERATIONS_SERVICE_NAME, operators.name_of)
        yield


def _open_stages(settings: GatewaySettings, stack: AsyncExitStack) -> tuple[VisionStage, LanguageStage]:
    """Open channels to both stages, and close them with `stack`."""
    tls = settings.channel_tls
    vision: VisionStage = Stage(
        "vision", settings.vision, vision_pb2_grpc.VisionServiceStub, tls=tls, routing=settings.routing
    )
    stack.push_async_callback(vision.close)
    language: LanguageStage = Stage("language", settings.language, LanguageStub, tls=tls, routing=settings.routing)
    stack.push_async_callback(language.close)
    return vision, language
