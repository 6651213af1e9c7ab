"""Open releases and find the replicas that serve them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from chassis.errors import FailedPrecondition, NotFound, PermissionDenied, TandemError
from chassis.health import Health
from chassis.single_flight import SingleFlight
from checkpoint.families import ModelConfig
from checkpoint.manifest import TOKENIZER_FILE, read_manifest
from checkpoint.store import ModelStore
from checkpoint.tags import parse_tag, split_release
from gateway.stages.errors import short_list
from gateway.stages.language_call import LanguageStub
from gateway.stages.stage import Replica, Stage
from processing import PromptBuilder, Vocabulary, open_prompt_builder
from tandem.v1 import gateway_pb2, model_pb2, sampling_pb2, vision_pb2_grpc

SERVICE_NAME = gateway_pb2.DESCRIPTOR.services_by_name["Gateway"].full_name
STABLE_HEALTH_NAME = f"{SERVICE_NAME}/stable"  # for readiness probes: a tag's name would end with its rollout

VisionStage = Stage["vision_pb2_grpc.VisionServiceAsyncStub"]
LanguageStage = Stage[LanguageStub]


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A vision tag and a language tag that answer together.

    The gateway itself needs the chat template, the tokenizer and the vocabulary of the language half.
    """

    vision_tag: str
    language_tag: str
    config: ModelConfig
    prompts: PromptBuilder
    vocabulary: Vocabulary
    tokenizer_digest: bytes

    @property
    def name(self) -> str:
        """The tag if both are equal, else 'vision tag,language tag'."""
        if self.vision_tag == self.language_tag:
            return self.language_tag
        return f"{self.vision_tag},{self.language_tag}"

    def default_sampling(self) -> sampling_pb2.SamplingOptions:
        """Return the options for fields that a request leaves absent."""
        return sampling_pb2.SamplingOptions(**self.config.default_sampling.model_dump(exclude_none=True))

    def proto(self) -> gateway_pb2.Release:
        """Return the two tags as a message."""
        return gateway_pb2.Release(vision_tag=self.vision_tag, language_tag=self.language_tag)


@dataclass(frozen=True, slots=True)
class Pin:
    """A release that a client asks for."""

    name: str
    may_be_on_trial: bool  # whether the client's role allows a canary


@dataclass(frozen=True, slots=True)
class Route:
    """The replicas for one request, all of one release."""

    release: Release
    language: Replica[LanguageStub]
    vision: Replica["vision_pb2_grpc.VisionServiceAsyncStub"] | None  # None if the request has no images


def open_release(store: ModelStore, name: str) -> Release:
    """Read the gateway's part of a release from disk.

    Args:
        store: contains the language half. The vision half may be missing.
        name: a tag, or 'vision tag,language tag'.

    Raises:
        InvalidArgument: reason 'BAD_TAG'.
        NotFound: reason 'UNKNOWN_TAG'.
        FailedPrecondition: reason 'RELEASE_MISMATCH' or 'BAD_CHECKPOINT'.
        DataLoss: reason 'DIGEST_MISMATCH', a file has changed.
    """
    vision_tag, language_tag = split_release(name)
    parse_tag(vision_tag)
    folder = store.folder(language_tag)
    manifest = read_manifest(folder)
    if vision_tag in store.tags() and read_manifest(store.folder(vision_tag)).vision.digest != (
        manifest.language.vision_digest
    ):
        raise _mismatch(vision_tag, language_tag)
    prompts = open_prompt_builder(folder)
    return Release(
        vision_tag=vision_tag,
        language_tag=language_tag,
        config=prompts.config,
        prompts=prompts,
        vocabulary=Vocabulary(prompts.tokenizer),
        tokenizer_digest=manifest.files[TOKENIZER_FILE],
    )


class Releases:
    """The releases that this gateway offers."""

    def __init__(self, store: ModelStore, default: Release, *, vision: VisionStage, language: LanguageStage) -> None:
        """Offer `default` only.

        Args:
            store: contains the language halves of all releases that may be offered later.
            default: the release of the settings, already open.
            vision: the vision stage.
            language: the language stage.
        """
        self._store = store
        self._vision = vision
        self._language = language
        self._opened = {default.name: default}
        self._opening: SingleFlight[str, Release] = SingleFlight()
        self.default_name = default.name  # answers requests that name no release
        self.names: tuple[str, ...] = (default.name,)  # releases that a client may name
        self.on_trial: str | None = None  # the one among them that only some roles may name

    def offer(self, names: Sequence[str], *, default_name: str, on_trial: str | None = None) -> None:
        """Replace the offered releases.

        Earlier ones stay open for requests in flight.
        """
        self.names, self.default_name, self.on_trial = tuple(names), default_name, on_trial

    def resolve_pin(self, pin: Pin) -> str:
        """Return the name of the release that `pin` selects.

        Args:
            pin: names a release, or its language tag.

        Raises:
            NotFound: reason 'UNKNOWN_RELEASE', it is not offered.
            PermissionDenied: reason 'RELEASE_ON_TRIAL', the client's role does not allow it.
        """
        for name in self.names:
            if pin.name not in (name, split_release(name)[1]):
                continue
            if name == self.on_trial and not pin.may_be_on_trial:
                raise PermissionDenied(
                    "This release is a canary: leave the choice to the gateway, or use the API key of a tester.",
                    reason="RELEASE_ON_TRIAL",
                    field="x-tandem-release",
                )
            return name
        names = [name for name in self.names if pin.may_be_on_trial or name != self.on_trial]
        raise NotFound(
            f"This release is not offered, choose one of: {short_list(names)}.",
            reason="UNKNOWN_RELEASE",
            field="x-tandem-release",
        )

    async def open(self, name: str) -> Release:
        """Return a release, read from the store on first use.

        Raises:
            TandemError: as `open_release`.
        """
        if name not in self._opened:
            landed = await self._opening.run(name, lambda: asyncio.to_thread(open_release, self._store, name))
            self._opened[name] = landed.result
        return self._opened[name]

    def drop(self, name: str) -> None:
        """Close a release that has no requests in flight."""
        self._opened.pop(name, None)

    async def route(
        self, release: Release, *, with_images: bool, prefix: bytes | None = None, image: bytes | None = None
    ) -> Route:
        """Return replicas of the halves that a request needs.

        Args:
            release: both halves.
            with_images: whether the request needs a vision replica.
            prefix: digest of the beginning of the prompt, for the language replica that holds it.
            image: digest of the first image, for the vision replica that holds its visual tokens.

        Raises:
            Unavailable: a half is not ready now.
            FailedPrecondition: reason 'RELEASE_MISMATCH', the halves do not fit, or 'MODEL_FAILED'.
        """
        language = await self._language.find(release.language_tag, prefix)
        _check_tokenizer(release, language.info)
        if not with_images:
            return Route(release, language, None)
        vision = await self._vision.find(release.vision_tag, image)
        _check_pair(vision.info, language.info)
        return Route(release, language, vision)

    async def list(self, *, with_trial: bool) -> list[gateway_pb2.ReleaseInfo]:
        """Refresh the stages and describe the offered releases by name.

        Args:
            with_trial: whether to list the release on trial, too.
        """
        await self._refresh()
        return [info for name, info in self.describe().items() if with_trial or name != self.on_trial]

    def describe(self) -> dict[str, gateway_pb2.ReleaseInfo]:
        """Describe the offered releases as last seen, sorted by name."""
        return {
            name: gateway_pb2.ReleaseInfo(
                release=release.proto(),
                ready=self._is_ready(release),
                is_default=release.name == self.default_name,
                vision=self._vision.info(release.vision_tag),
                language=self._language.info(release.language_tag),
                default_sampling=release.default_sampling(),
                kind=release.config.kind,
                renders_tools=release.prompts.renders_tools,
            )
            for name in sorted(self.names)
            if (release := self._opened.get(name)) is not None
        }

    def engine_loads(self, name: str) -> Sequence[model_pb2.EngineLoad]:
        """Return the last known load of a release's language replicas."""
        _, language_tag = split_release(name)
        return [info.language.load for info in self._language.infos(language_tag)]

    async def watch(self, health: Health, every_s: float) -> None:
        """Refresh the stages until cancelled, and report each release's health.

        '<service>/stable' is SERVING once both stages have had the stable release. It stays so when a stage is lost.
        Otherwise one lost stage would take every gateway out of its Service, and clients would see no reason.

        Args:
            health: gets the status of '<service>/<language tag>' and of '<service>/stable'.
            every_s: seconds between two refreshes.
        """
        health.set(STABLE_HEALTH_NAME, serving=False)
        reported: set[str] = set()
        while True:
            await self._refresh()
            ready = {name for name in self.names if name in self._opened and self._is_ready(self._opened[name])}
            is_ready = {split_release(name)[1]: name in ready for name in self.names}
            for tag in reported | is_ready.keys():
                health.set(f"{SERVICE_NAME}/{tag}", is_ready.get(tag, False))
            reported |= is_ready.keys()
            if self.default_name in ready:
                health.set(STABLE_HEALTH_NAME, serving=True)
            await asyncio.sleep(every_s)

    async def _refresh(self) -> None:
        await asyncio.gather(self._vision.refresh(), self._language.refresh())

    def _is_ready(self, release: Release) -> bool:
        vision, language = self._vision.info(release.vision_tag), self._language.info(release.language_tag)
        if vision is None or language is None:
            return False
        try:
            _check_tokenizer(release, language)
            _check_pair(vision, language)
        except TandemError:
            return False
        return vision.state == language.state == model_pb2.MODEL_STATE_READY


def _check_tokenizer(release: Release, language: model_pb2.ModelInfo) -> None:
    if language.language.tokenizer_digest != release.tokenizer_digest:
        raise FailedPrecondition(
            f"The tokenizers of {release.language_tag} differ between gateway and language service, give both the same "
            "checkpoint.",
            reason="RELEASE_MISMATCH",
        )


def _check_pair(vision: model_pb2.ModelInfo, language: model_pb2.ModelInfo) -> None:
    """Check that the decoder was trained with this encoder."""
    fits = (
        vision.half_digest == language.language.vision_digest
        and vision.vision.token_width == (language.language.num_levels or 1) * language.language.width
        and vision.vision.num_visual_tokens == language.language.num_visual_tokens
    )
    if not fits:
        raise _mismatch(vision.tag, language.tag)


def _mismatch(vision_tag: str, language_tag: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"The language half of {language_tag} was trained with another vision half than {vision_tag}, choose a pair "
        "that fits.",
        reason="RELEASE_MISMATCH",
    )
