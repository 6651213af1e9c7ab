"""Keep the answers of a tag to one engine.

Two engines round differently, and sample from other random streams. So a tag that two of them serve would answer by
chance of routing, and a canary of one would be judged by the answers of both.
"""

from collections.abc import Iterable

import structlog

from tandem.v1 import model_pb2

_log = structlog.get_logger()


class OneEngine:
    """The engine of each language tag, as first seen."""

    def __init__(self) -> None:
        self._engines: dict[str, str] = {}

    def of(self, tag: str, infos: Iterable[model_pb2.ModelInfo]) -> str | None:
        """Return the engine whose replicas may answer.

        It is the one that the tag had before, while it has a ready replica. None for a vision half, whose encoder id
        tells its backends apart.

        Args:
            tag: the model's tag.
            infos: of its ready replicas.
        """
        engines = {info.backend for info in infos if info.HasField("language")}
        if not engines:
            return None
        before = self._engines.get(tag)
        chosen = before if before in engines else min(engines)
        if chosen != before:
            self._engines[tag] = chosen
            if len(engines) > 1 or before is not None:
                _log.warning("engine of a tag chosen", tag=tag, engine=chosen, ready=sorted(engines), before=before)
        return chosen
